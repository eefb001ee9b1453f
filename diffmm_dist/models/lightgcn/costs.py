"""What LightGCN costs: memory (models/common/costs.py), work and traffic (models/common/work.py).

Symbols: U users, I items, E interactions, L layers, d embedding, W workers, B interactions of a step.
"""

from collections.abc import Mapping

from diffmm_dist.graph import layout, relation
from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, ModelMemory, Share
from diffmm_dist.models.common.work import (
    ADAM_ACCESSES,
    EXCHANGES_PER_PRODUCT,
    TARGET_EXCHANGES,
    Cuts,
    Traffic,
    Work,
    layout_exchanges,
    layout_traffic,
    products_of_few,
    propagated_bytes,
    ranking_exchanges,
    real_rows_sent,
    real_target_rows_sent,
    sent_bytes,
    table_traffic,
)

_STEP_ACCESSES = 8  # of each row of the tables in a step: their norm, its gradient, the batch's gradients, their sum
_LAYER_ACCESSES = 6  # of each row in a layer, besides the gathered ones: read, added and written, forward and backward


def memory(
    share: Share, graph: Share, *, embedding_dim: int, num_layers: int, step_size: int, dgl: bool
) -> ModelMemory:
    """Return what LightGCN needs.

    Args:
        share: the data.
        graph: what of it is in the worker's graph.
        embedding_dim: d.
        num_layers: L.
        step_size: B.
        dgl: whether DGL may propagate.
    """
    table = (share.users + share.items) * embedding_dim * FLOAT
    step_tables = 2 if num_layers == 0 else 3  # the layers' sum, its gradient, and one in between
    return ModelMemory(
        kept={
            "interactions": costs.interactions(share),
            "graph": costs.graph(graph, dgl=dgl),
            "tables": ADAM_KEEPS * table,
        },
        phases={
            "recommend": costs.ranking_phase(
                share,
                gradients=table,
                step={"propagation": step_tables * table},
                dim=embedding_dim,
                batch=step_size,
            )
        },
        embedding=min(num_layers, 1) * table + (2 * table if num_layers > 1 else 0),
        width=embedding_dim,
        trained=table,
        largest=max(share.users, share.items) * embedding_dim * FLOAT,
    )


def work(
    share: Share,
    *,
    embedding_dim: int,
    num_layers: int,
    step_size: int,
    by_columns: bool = False,
    read_edges: int | None = None,
) -> Mapping[str, Work]:
    """Return what one worker does in an epoch; it has no dense products but those of single rows.

    Args:
        share: the data.
        embedding_dim: d.
        num_layers: L.
        step_size: B.
        by_columns: tables propagate by columns.
        read_edges: edges to the rows that a batch reads; None counts all.
    """
    steps, size = -(-share.num_interactions // step_size), share.num_workers
    nodes = (share.num_users + share.num_items) / size
    accesses = ADAM_ACCESSES + _STEP_ACCESSES + num_layers * _LAYER_ACCESSES
    last = min(num_layers, 1)
    products = num_layers - last + products_of_few(last, share, read_edges)
    moved = propagated_bytes(share.num_interactions * products, embedding_dim, num_workers=size, by_columns=by_columns)
    exchanges = ranking_exchanges(steps, step_size, by_columns=by_columns)
    if by_columns:
        exchanges += layout_exchanges(steps, entering=False)
    else:
        exchanges += steps * (num_layers * EXCHANGES_PER_PRODUCT + TARGET_EXCHANGES)
    moved += nodes * embedding_dim * accesses * FLOAT
    return {"recommend": Work(steps, 0.0, steps * moved, exchanges if size > 1 else 0)}


def traffic(cuts: Cuts, *, embedding_dim: int, num_layers: int) -> list[Traffic]:
    """Return what each worker sends in a step: the rows of each layer's product, or tables by columns and back.

    Args:
        cuts: the data and how they are cut.
        embedding_dim: d.
        num_layers: L.
    """
    if cuts.by_columns:
        left = layout_traffic(cuts, embedding_dim, item_tables=0, read=1)
        tables = table_traffic(cuts, embedding_dim)
        return [
            {"recommend": {layout.TRAFFIC: of_step, layout.TABLES: of_epoch}}
            for of_step, of_epoch in zip(left, tables, strict=True)
        ]
    last = min(num_layers, 1)
    return [
        {"recommend": {relation.TRAFFIC: sent_bytes(cuts, (num_layers - last) * sum(rows) + last * few, embedding_dim)}}
        for rows, few in zip(real_rows_sent(cuts), real_target_rows_sent(cuts), strict=True)
    ]
