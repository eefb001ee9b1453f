"""Memory of AdaGCL, in bytes (models/common/costs.py)."""

from diffmm_dist.losses import batch_contrastive
from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, INT, ModelMemory, Share


def memory(
    share: Share, *, embedding_dim: int, num_layers: int, batch_size: int, snapshot: bool, dgl: bool
) -> ModelMemory:
    """Return what AdaGCL needs.

    Args:
        share: the data.
        embedding_dim: d.
        num_layers: L.
        batch_size: B.
        snapshot: keeps the initial tables.
        dgl: whether DGL may propagate.
    """
    table = (share.users + share.items) * embedding_dim * FLOAT
    entries = 2 * share.interactions + share.users + share.items
    generators = (4 + 3 * num_layers) * embedding_dim * embedding_dim * FLOAT  # both generators' affine maps, about
    return ModelMemory(
        kept={
            "interactions": costs.interactions(share),
            "graph": costs.graph(share, dgl=dgl) + entries * INT,  # keys of the entries
            "tables": (2 * ADAM_KEEPS + snapshot) * table + ADAM_KEEPS * generators,
        },
        phases={
            "recommend": costs.ranking_phase(
                share,
                gradients=2 * table,
                step={
                    "generators": _GENERATOR_TABLES * table + _gate_bytes(entries, num_layers),
                    "contrast": _contrast(share, embedding_dim, batch_size),
                },
                dim=embedding_dim,
                batch=batch_size,
            )
        },
        embedding=2 * table,
        width=embedding_dim,
        trained=2 * table + generators,
        largest=max(share.users, share.items) * embedding_dim * FLOAT,
    )


_GENERATOR_TABLES = 24  # node rows that the gates' pass keeps for its gradient, of two layers, beside mu and sigma
_GATE_FLOATS = 14  # of an entry and layer, float64 counted twice


def _gate_bytes(entries: int, num_layers: int) -> int:
    return entries * num_layers * _GATE_FLOATS * FLOAT


def _contrast(share: Share, dim: int, batch_size: int) -> int:
    """Return the bytes of the distinct nodes' rows, and of a block of similarities."""
    nodes = min(2 * batch_size, share.num_users + share.num_items)
    block = max(batch_contrastive.BLOCK_ELEMENTS, batch_contrastive.LEAST_ANCHORS * nodes)
    return (nodes * dim * 12 + 2 * min(block, nodes * nodes)) * FLOAT
