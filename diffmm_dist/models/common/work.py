"""What models compute and send, in the terms that they share: operations, bytes moved and bytes sent.

Operations are those of dense products, an addition being one too; what is sent is counted as parallel/collectives.py
says. docs/benchmarks/epoch.md and scaling.md compare with measured runs.

Symbols: B rows, U users, I items, E interactions, h hidden, d embedding, A anchors, N nodes, W workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.layout import TABLES
from diffmm_dist.losses import contrastive
from diffmm_dist.models.base import PhaseContext
from diffmm_dist.models.common.costs import ADAM_KEEPS, FLOAT, Share
from diffmm_dist.models.common.ranking import RankingBatches, planned_together
from diffmm_dist.models.common.ranking_batch import RankingBatch
from diffmm_dist.parallel.collectives import ring_bytes
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World

ADAM_ACCESSES = 7  # of each weight in a step: value, gradient and moments read, all but the gradient written
EXCHANGES_PER_PRODUCT = 4  # out and back, forward and backward
TARGET_EXCHANGES = 2  # of a step: owners and readers tell each other which halo rows the last product needs
_BATCH_EXCHANGES = 2  # of a step: its items' rows and their gradients, where they do not come with the layout's
_PLAN_EXCHANGES = 2  # of batches that are planned together: of how many items they are, and of which
_NODES_EXCHANGES = 2  # likewise, where their nodes are contrasted: counts of others' items, and numbers of nodes
_READING_EXCHANGES = 2  # likewise, where tables propagate by columns: how many rows are read, and which
_GATHERS = 4  # of each edge of a product: both directions, forward and backward
_EDGE_BYTES = 12  # of an edge besides the row that it gathers: its place and its weight

# Bytes of a step, by phase and purpose; what is sent once in an epoch has the purpose ``TABLES`` (graph/layout.py).
Traffic = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Work:
    """What one worker does in an epoch of a phase, besides what it sends.

    Attributes:
        steps: of the epoch.
        flops: operations of dense products.
        memory_bytes: bytes read and written besides.
        exchanges: messages and sums that it takes part in.
    """

    steps: int
    flops: float
    memory_bytes: float
    exchanges: float = 0


@dataclass(frozen=True)
class Cuts:
    """What a model's traffic depends on, besides its own settings.

    Attributes:
        data: all training data, in one process.
        shards: how the workers share them, a shard for each.
        batch_size: of a batch, for all workers.
        seed: the run's.
        by_columns: tables propagate by columns (graph/layout.py).
        propagate_every: batches of interactions that a step covers.
    """

    data: TrainingData
    shards: Sequence[Shard]
    batch_size: int
    seed: int
    by_columns: bool = False
    propagate_every: int = 1

    @cached_property
    def batch(self) -> RankingBatch:
        """The batches of the first step over interactions."""
        return first_batch_of(self.data, self.batch_size, self.seed, self.propagate_every)

    @property
    def value_bytes(self) -> int:
        """Bytes of a number of a table that propagates, on its way to another worker."""
        messages = self.shards[0].messages
        return FLOAT if messages is None else messages.itemsize


def product_flop(rows: float, items: float, width: int) -> float:
    """Return the operations of a (B x h) (h x I) product, 2 B I h."""
    return rows * items * width * 2


def input_flop(rows: float, items: float, width: int, *, hidden_noise: bool) -> float:
    """Return the products over the items that enter a denoiser's hidden layer: x_t W and its gradient.

    Args:
        rows: B.
        items: I.
        width: h of the first hidden layer.
        hidden_noise: through W^T W (diffusion/noise.py): 4 I h^2 instead of 4 B I h.
    """
    return 4 * items * width**2 if hidden_noise else 4 * rows * items * width


def output_flop(rows: float, items: float, width: int, dim: int, *, gram: bool) -> float:
    """Return the products over the items of a denoiser's loss and gradients: 6 B I h + 4 B I d, or 4 I h (h + d).

    Args:
        rows: B.
        items: I.
        width: h of the last hidden layer.
        dim: d.
        gram: through W^T W (diffusion/output.py).
    """
    return 4 * items * width * (width + dim) if gram else 6 * rows * items * width + 4 * rows * items * dim


def num_anchors(batch_size: int, max_nodes: int | None) -> int:
    """Return how many nodes of each side of a batch are contrasted at most; ``max_nodes`` is None for all."""
    return batch_size if max_nodes is None else min(batch_size, max_nodes)


def contrast_flop(anchors: float, nodes: float, dim: int) -> float:
    """Return the products of one contrastive term: similarities and both gradients, 6 A N d."""
    return 6 * anchors * nodes * dim


def gathered_bytes(edges: float, dim: float) -> float:
    """Return the bytes that products read for their edges, forward and backward: rows, places and weights.

    Args:
        edges: of all products that a step takes, each edge as often as it is used.
        dim: columns of the rows.
    """
    return _GATHERS * edges * (dim * FLOAT + _EDGE_BYTES)


def ranking_exchanges(
    steps: int, step_size: int, *, contrasted: bool = False, sampled: bool = False, by_columns: bool = False
) -> int:
    """Return the exchanges of an epoch of steps besides those of products, contrasts and replicas' gradients.

    Args:
        steps: of the epoch.
        step_size: interactions of a step.
        contrasted: nodes of batches are counted.
        sampled: and some of them chosen.
        by_columns: tables propagate by columns.
    """
    plans = _PLAN_EXCHANGES + _NODES_EXCHANGES * contrasted + sampled + _READING_EXCHANGES * by_columns
    return steps * _BATCH_EXCHANGES * (not by_columns) + -(-steps // planned_together(step_size)) * plans


def layout_exchanges(steps: int, *, entering: bool) -> int:
    """Return the exchanges of an epoch of steps whose tables propagate by columns.

    Args:
        steps: of the epoch.
        entering: tables besides those of IDs, which are there, are brought to columns in every step.
    """
    return steps * 2 * (1 + entering) + 2 * ADAM_KEEPS  # each with its gradients; of tables there and back


def contrast_exchanges(terms: int, *, in_batch: bool) -> int:
    """Return the exchanges of so many contrastive terms: anchors, sums of a block and gradients of each, or of all."""
    return 3 * (min(terms, 1) if in_batch else terms)


def products_of_few(products: int, share: Share, read: int | None) -> float:
    """Return how many whole products take as long as some of which only the rows of a batch are read.

    Args:
        products: those.
        share: the data.
        read: edges to the rows that a batch reads; None counts all.
    """
    return products if read is None else products * read / max(2 * share.num_interactions, 1)


def propagated_bytes(edges: float, dim: int, *, num_workers: int, by_columns: bool) -> float:
    """Return the same of one of W workers: of its edges, or of all edges and its columns.

    Args:
        edges: of all workers.
        dim: d.
        num_workers: W.
        by_columns: tables propagate by columns.
    """
    if by_columns:
        return gathered_bytes(edges, dim / num_workers)
    return gathered_bytes(edges / num_workers, dim)


def first_batch_of(data: TrainingData, batch_size: int, seed: int, propagate_every: int) -> RankingBatch:
    """Return the batches of the first step over interactions, from all data in one process."""
    batches = RankingBatches(data, batch_size, propagate_every)
    batches.begin(PhaseContext(World.single(), seed, 0))
    return batches[0]


def read_edges(data: TrainingData, batch_size: int, seed: int, propagate_every: int = 1) -> int:
    """Return how many edges lead to the users and to the items that the first step reads."""
    reads, interactions = first_batch_of(data, batch_size, seed, propagate_every).reads, data.interactions
    return int(interactions.row_counts[reads.users].sum() + interactions.column_counts[reads.items].sum())


class HaloRows(NamedTuple):
    """What a worker sends of a graph.

    Attributes:
        given: its own rows that others need.
        returned: its halo's sums, back to their owners.
    """

    given: int
    returned: int


def halo_rows_sent(user_ids: Tensor, item_ids: Tensor, shards: Sequence[Shard]) -> list[HaloRows]:
    """Return the rows that each worker sends in one product.

    Args:
        user_ids: of each edge of the graph.
        item_ids: of each edge.
        shards: of the workers.
    """
    size, num_items = len(shards), shards[0].num_items
    user_owner = torch.empty(shards[0].num_users, dtype=torch.int64)
    for rank, shard in enumerate(shards):
        user_owner[shard.user_ids] = rank
    rows = shards[0].item_rows[item_ids]
    pairs = torch.unique(user_owner[user_ids] * num_items + rows)
    reader, owner = pairs // num_items, shards[0].items.owner_of(pairs % num_items)
    away = reader != owner
    given = torch.bincount(owner[away], minlength=size)
    returned = torch.bincount(reader[away], minlength=size)
    return [HaloRows(*map(int, counts)) for counts in zip(given, returned, strict=True)]


def real_rows_sent(cuts: Cuts) -> list[HaloRows]:
    """Return the rows that each worker sends in one product over the real graph."""
    data = cuts.data
    return halo_rows_sent(data.shard.user_ids[data.interactions.row_ids], data.interactions.indices, cuts.shards)


def real_target_rows_sent(cuts: Cuts) -> list[float]:
    """Return the rows that each worker sends for those of such a product that the first batch reads: the passes' mean.

    Of its halo a worker gets the items of the users that it reads, and sends the sums of items that anyone reads.
    """
    data = cuts.data
    users, items = cuts.batch.reads.users, cuts.batch.reads.items
    rows, item_ids = data.interactions.row_ids, data.interactions.indices
    read_users = torch.isin(torch.arange(data.interactions.num_rows), users)[rows]
    read_items = torch.isin(torch.arange(data.shard.num_items), data.shard.item_ids[items])[item_ids]
    sent = [
        halo_rows_sent(data.shard.user_ids[rows[which]], item_ids[which], cuts.shards)
        for which in (read_users, read_items)
    ]
    return [(sum(given) + sum(returned)) / 2 for given, returned in zip(*sent, strict=True)]


def sent_bytes(cuts: Cuts, rows: float, dim: int) -> int:
    """Return the bytes of rows that are sent forward, and of as many gradients that are sent backward."""
    return int(2 * rows) * dim * cuts.value_bytes


def layout_traffic(
    cuts: Cuts, dim: int, *, item_tables: int, read: int, read_by_owners: int = 0, whole: int = 0
) -> list[int]:
    """Return the bytes that each worker sends in the first step to propagate by columns, forward and backward.

    Args:
        cuts: the data and how they are cut.
        dim: d.
        item_tables: tables of items that enter, besides those of IDs, which are there.
        read: pairs of tables of which the rows of the first step are read.
        read_by_owners: likewise, each row by its owner alone.
        whole: pairs of tables of which all rows are.
    """
    size, shards = len(cuts.shards), cuts.shards
    if size == 1:
        return [0]
    user_ids, item_ids = cuts.data.shard.user_ids, cuts.data.shard.item_ids
    of_users = owned(user_ids[cuts.batch.reads.users], [shard.user_ids for shard in shards])
    of_items = owned(item_ids[cuts.batch.reads.items], [shard.own_item_ids for shard in shards])
    own_rows = [sum(both) for both in zip(of_users, of_items, strict=True)]
    further = [_others_items(cuts, shard) for shard in shards]
    all_rows = [len(shard.user_ids) + len(shard.own_item_ids) for shard in shards]
    entering = [item_tables * len(shard.own_item_ids) for shard in shards]
    own = [
        entered + (read + read_by_owners) * few + read * more + whole * every
        for entered, few, more, every in zip(entering, own_rows, further, all_rows, strict=True)
    ]
    return [numbers * cuts.value_bytes for numbers in _there_and_back(own, dim)]


def table_traffic(cuts: Cuts, dim: int) -> list[int]:
    """Return the bytes that each worker sends in an epoch to have the ID tables by columns meanwhile.

    Their values and moments go there and come back as they are.
    """
    own = [len(shard.user_ids) + len(shard.own_item_ids) for shard in cuts.shards]
    return [numbers * ADAM_KEEPS * FLOAT for numbers in _there_and_back(own, dim)]


def _there_and_back(own: Sequence[int], dim: int) -> list[int]:
    """Return the numbers that each worker sends for so many rows of each to go to columns and to come back."""
    columns = Ownership.even(dim, size=len(own)).sizes
    return [rows * (dim - mine) + (sum(own) - rows) * mine for rows, mine in zip(own, columns, strict=True)]


def epoch_bytes(of_step: Mapping[str, int], steps: int) -> int:
    """Return the bytes of an epoch of steps, from those of a phase in ``Traffic``."""
    return sum(num_bytes * (1 if purpose == TABLES else steps) for purpose, num_bytes in of_step.items())


def _others_items(cuts: Cuts, shard: Shard) -> int:
    """Return how many items a worker reads in the first step that others own."""
    batch = cuts.batch
    mine = torch.isin(cuts.data.shard.user_ids[batch.user_rows], shard.user_ids)
    items = cuts.data.shard.item_ids[torch.unique(torch.stack([batch.pos_items, batch.neg_items])[:, mine])]
    return int((~torch.isin(items, shard.own_item_ids)).sum())


def owned(ids: Tensor, owned_ids: Sequence[Tensor]) -> list[int]:
    """Return how many of some ids each worker owns, from the ids that it owns of all."""
    return [int(torch.isin(ids, own).sum()) for own in owned_ids]


def contrast_traffic(
    cuts: "Cuts", dim: int, *, in_batch: bool, max_nodes: int | None = None, targets: Sequence[int] = (1,)
) -> list[int]:
    """Return the bytes that each worker sends for the contrast of the nodes of the first step.

    Args:
        cuts: the data and how they are cut.
        dim: d.
        in_batch: contrast with the batch's nodes alone.
        max_nodes: of each side to contrast, on average; None for all.
        targets: for each view whose nodes are anchors, with how many it is contrasted.
    """
    shards, whole = cuts.shards, cuts.data.shard
    owners = [shard.user_ids for shard in shards], [shard.own_item_ids for shard in shards]
    most = max(shards[0].users.sizes), max(shards[0].items.sizes)
    terms = []
    for users, items in cuts.batch.contrasted_nodes(max_nodes):
        ids = whole.user_ids[users.nodes], whole.item_ids[items.nodes]
        counts = [owned(of_side, owned_ids) for of_side, owned_ids in zip(ids, owners, strict=True)]
        terms += [
            _Term(of_side, max(of_side) if in_batch else rows, each)
            for each in targets
            for of_side, rows in zip(counts, most, strict=True)
        ]
    alone = [terms] if in_batch else [[term] for term in terms]
    sent = [_sent_by_terms(of_exchange, dim) for of_exchange in alone]
    return [sum(of_rank) for of_rank in zip(*sent, strict=True)]


class _Term(NamedTuple):
    """One term of a contrast: its nodes at each worker, the most rows that they meet at one, and its targets."""

    counts: Sequence[int]
    most_rows: int
    targets: int

    @property
    def blocks(self) -> list[int]:
        """Anchors that are compared at a time."""
        total, step = sum(self.counts), contrastive.anchors_at_a_time(self.most_rows, self.targets)
        return [min(step, total - start) for start in range(0, total, step)]


def _sent_by_terms(terms: Sequence[_Term], dim: int) -> list[int]:
    """Return the bytes of terms that share messages: anchors and weights, sums block by block, anchors' gradients."""
    size = len(terms[0].counts)
    blocks = zip_longest(*([block * term.targets for block in term.blocks] for term in terms), fillvalue=0)
    summed = sum(ring_bytes(sum(block) * FLOAT, size) for block in blocks)
    summed += ring_bytes(sum(sum(term.counts) for term in terms) * dim * FLOAT, size)
    own = [sum(of_rank) for of_rank in zip(*(term.counts for term in terms), strict=True)]
    return [count * (dim + 1) * FLOAT * (size - 1) + summed for count in own]
