"""What AdaGCL costs: memory (models/common/costs.py), work and traffic (models/common/work.py).

Symbols: E interactions, N nodes, L layers, d embedding, W workers, B batch, A distinct nodes of a batch.
"""

import math
from collections.abc import Mapping

from diffmm_dist.graph import relation
from diffmm_dist.losses import batch_contrastive, contrastive
from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, INT, ModelMemory, Share
from diffmm_dist.models.common.work import (
    ADAM_ACCESSES,
    Cuts,
    HaloRows,
    Traffic,
    Work,
    gathered_bytes,
    owned,
    product_flop,
    ranking_exchanges,
    real_rows_sent,
)
from diffmm_dist.parallel.collectives import ring_bytes


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


# Per layer of a step: the encoder, both views twice, what ranks, and the pass that trains the gates.
_PRODUCTS = 7
_VALUE_PRODUCTS = 1  # the gradient of the gates' values gathers as many rows as a product does
_NARROW_GIVEN, _NARROW_RETURNED = 10, 5  # numbers of an item: ends of log a, sums of rows and their gradients
_DECODED_ROWS = 2  # gathered of each edge where the graph is pruned, forward only
_ENCODER_MAPS, _GATE_MAPS = 4, 2  # affine maps d x d of each node: the encoder's; of one layer's gates
_TRAINED, _VIEWED = 3, 2  # products of such a map in a pass with gradients; passes over the gates without
_CONTRAST_PRODUCTS = 7  # between the views: similarities and both gradients; with the old ones: no gradient of these
_TABLE_STEPS = 4  # of Adam: three of the tables, one of the encoder's
_ROW_ACCESSES, _LAYER_ACCESSES = 80, 42  # of each node's row in a step, and more in each layer, besides gathered ones
_ENTRY_ACCESSES = 40  # of each entry of the graph in a layer: three passes over log a and the gates, with gradients
_WIDE_EXCHANGES, _NARROW_EXCHANGES = 28, 11  # in each layer, of rows d wide and of single numbers
# Rows that are decoded, twice; counts, targets and gradients of the contrast; two more BPR losses; how many entries are
# kept; the sum of the gradients of what every worker has whole.
_OTHER_EXCHANGES = 3 + 5 + 4 + 1 + 1


def work(share: Share, *, embedding_dim: int, num_layers: int, batch_size: int, alone: bool) -> Mapping[str, Work]:
    """Return what one worker does in an epoch; the contrast has as many distinct nodes as even draws would hit.

    Args:
        share: the data.
        embedding_dim: d.
        num_layers: L.
        batch_size: B.
        alone: contrast with own nodes only.
    """
    steps, size, dim = -(-share.num_interactions // batch_size), share.num_workers, embedding_dim
    nodes, edges = (share.num_users + share.num_items) / size, share.num_interactions / size
    drawn = _distinct(batch_size, share.num_users) + _distinct(batch_size, share.num_items)
    anchors = drawn / size
    compared = anchors if alone else drawn
    maps = _ENCODER_MAPS * _TRAINED + num_layers * _GATE_MAPS * (_TRAINED + _VIEWED)
    decoded = edges + nodes + _TRAINED * 2 * batch_size / size
    flops = product_flop(nodes, dim, dim) * maps + product_flop(decoded, dim, dim)
    flops += _CONTRAST_PRODUCTS * product_flop(anchors, compared, dim)
    moved = (
        gathered_bytes((_PRODUCTS + _VALUE_PRODUCTS) * num_layers * edges, dim) + _DECODED_ROWS * edges * dim * FLOAT
    )
    accesses = _TABLE_STEPS * ADAM_ACCESSES + _ROW_ACCESSES + num_layers * _LAYER_ACCESSES
    moved += (nodes * dim * accesses + (2 * edges + nodes) * num_layers * _ENTRY_ACCESSES) * FLOAT
    exchanges = steps * (num_layers * (_WIDE_EXCHANGES + _NARROW_EXCHANGES) + _OTHER_EXCHANGES)
    exchanges += ranking_exchanges(steps, batch_size, contrasted=True)
    return {"recommend": Work(steps, steps * flops, steps * moved, exchanges if size > 1 else 0)}


def _distinct(draws: int, nodes: int) -> float:
    """Return how many different nodes are expected among so many draws of them."""
    return nodes * -math.expm1(-draws / nodes)


def traffic(cuts: Cuts, *, embedding_dim: int, num_layers: int, alone: bool) -> list[Traffic]:
    """Return what each worker sends in the first step.

    Args:
        cuts: the data and how they are cut.
        embedding_dim: d.
        num_layers: L.
        alone: contrast with own nodes only.
    """
    contrast = [0] * len(cuts.shards) if alone else _contrast_bytes(cuts, embedding_dim)
    return [
        {
            "recommend": {
                relation.TRAFFIC: _propagation_bytes(rows, embedding_dim, num_layers, cuts.value_bytes),
                contrastive.TRAFFIC: of_contrast,
            }
        }
        for rows, of_contrast in zip(real_rows_sent(cuts), contrast, strict=True)
    ]


def _propagation_bytes(rows: HaloRows, dim: int, num_layers: int, value_bytes: int) -> int:
    """Return the bytes of all products of a step, of what is decoded, and of numbers of nodes that entries read."""
    wide = num_layers * 2 * _PRODUCTS * dim * sum(rows)  # forward and backward
    exact = rows.given * (dim + num_layers * _NARROW_GIVEN) + rows.returned * num_layers * _NARROW_RETURNED
    return wide * value_bytes + exact * FLOAT


def _contrast_bytes(cuts: Cuts, dim: int) -> list[int]:
    """Return the bytes of counts of a batch's nodes, of three terms' targets, and of one term's gradients of them."""
    shards, size, whole = cuts.shards, len(cuts.shards), cuts.data.shard
    ((users, items),) = cuts.batch.nodes
    sides = (
        owned(whole.user_ids[users.nodes], [shard.user_ids for shard in shards]),
        owned(whole.item_ids[items.nodes], [shard.own_item_ids for shard in shards]),
    )
    counts = [sum(both) for both in zip(*sides, strict=True)]
    summed = ring_bytes(sum(counts) * dim * FLOAT, size)
    return [count * (1 + 3 * dim) * FLOAT * (size - 1) + summed for count in counts]
