"""Memory of the popularity baseline, in bytes (models/common/costs.py)."""

from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import FLOAT, INT, ModelMemory, Share


def memory(share: Share) -> ModelMemory:
    """Return what the baseline needs: the interactions, and embeddings of width 1."""
    table = (share.users + share.items) * FLOAT
    return ModelMemory(
        kept={"interactions": costs.interactions(share, trains=False), "tables": table + share.num_items * INT},
        trained=table,
    )
