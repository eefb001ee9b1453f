"""Memory of LightGCN, in bytes (models/common/costs.py)."""

from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, ModelMemory, Share


def memory(share: Share, *, embedding_dim: int, num_layers: int, batch_size: int, dgl: bool) -> ModelMemory:
    """Return what LightGCN needs.

    Args:
        share: the data.
        embedding_dim: d.
        num_layers: L.
        batch_size: B.
        dgl: whether DGL may propagate.
    """
    table = (share.users + share.items) * embedding_dim * FLOAT
    step_tables = 2 if num_layers == 0 else 3  # the layers' sum, its gradient, and one in between
    return ModelMemory(
        kept={
            "interactions": costs.interactions(share),
            "graph": costs.graph(share, dgl=dgl),
            "tables": ADAM_KEEPS * table,
        },
        phases={
            "recommend": costs.ranking_phase(
                share, gradients=table, step={"propagation": step_tables * table}, dim=embedding_dim, batch=batch_size
            )
        },
        embedding=min(num_layers, 1) * table + (2 * table if num_layers > 1 else 0),
        width=embedding_dim,
        trained=table,
        largest=max(share.users, share.items) * embedding_dim * FLOAT,
    )
