"""Settings that ask for more than the data have: what is used instead."""

from diffmm_dist.config.schema import Config
from diffmm_dist.data.schema import Manifest


def clipped(config: Config, manifest: Manifest) -> tuple[Config, list[str]]:
    """Return the configuration to compute with, and a line for each setting that asks for more than the data have.

    The results are those of the value that is used instead. A run keeps what the user wrote as its identity.

    Args:
        config: as the user wrote it.
        manifest: of the dataset.
    """
    users, items, interactions = manifest.num_users, manifest.num_items, manifest.num_interactions("train")
    batch = (interactions, "training interactions") if interactions >= users else (users, "users")
    nodes = (users, "users") if users >= items else (items, "items")
    bounds = {
        ("train", "batch_size"): batch,
        ("eval", "batch_size"): (users, "users"),
    }
    if config.model.name == "diffmm":
        bounds |= {("diffusion", "rebuild_topk"): (items, "items"), ("contrast", "max_nodes"): nodes}
    changes: dict[str, dict[str, int]] = {}
    lines = []
    for (section, key), (bound, what) in bounds.items():
        value = getattr(getattr(config, section), key)
        if value is not None and value > bound > 0:
            changes.setdefault(section, {})[key] = bound
            lines.append(f"{section}.{key} {value:,} is clipped to the {bound:,} {what}")
    if max(config.eval.k) > items:
        # Metrics keep their names and divisors, so the setting stays; the lists are as long as there are items.
        lines.append(f"eval.k {max(config.eval.k):,} ranks the {items:,} items that there are")
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    return config.model_copy(update=sections), lines
