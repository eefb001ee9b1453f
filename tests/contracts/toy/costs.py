"""Memory of the toy model, in bytes."""

from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, ModelMemory


def memory(share, *, embedding_dim, batch_size):
    table = (share.users + share.items) * embedding_dim * FLOAT
    step = costs.ranking_phase(share, gradients=table, step={}, dim=embedding_dim, batch=batch_size)
    return ModelMemory(
        kept={"interactions": costs.interactions(share), "tables": 2 * ADAM_KEEPS * table},
        phases=dict.fromkeys(("warm", "refine", "sometimes", "student"), step),
        embedding=table,
        width=embedding_dim,
        trained=3 * table,
        largest=max(share.users, share.items) * embedding_dim * FLOAT,
    )
