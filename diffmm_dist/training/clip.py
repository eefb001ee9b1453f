"""Settings that ask for more than the data have: what is used instead."""

from operator import attrgetter

from diffmm_dist.config.section import changed
from diffmm_dist.data.knowledge import ENTITIES
from diffmm_dist.data.schema import Manifest
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import model_entry


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
    entities = (items + manifest.counts.get(ENTITIES, 0), "entities")
    counts = {"items": (items, "items"), "nodes": nodes, "entities": entities}
    bounds = {"train.batch_size": batch, "eval.batch_size": (users, "users")}
    bounds |= {f"model.{key}": counts[bound] for key, bound in model_entry(config).bounds.items()}
    changes: dict[str, int] = {}
    lines = []
    for key, (bound, what) in bounds.items():
        value = attrgetter(key)(config)
        if value is not None and value > bound > 0:
            changes[key] = bound
            lines.append(f"{key} {value:,} is clipped to the {bound:,} {what}")
    if max(config.eval.k) > items:
        # Metrics keep their names and divisors, so the setting stays; the lists are as long as there are items.
        lines.append(f"eval.k {max(config.eval.k):,} ranks the {items:,} items that there are")
    return changed(config, changes), lines
