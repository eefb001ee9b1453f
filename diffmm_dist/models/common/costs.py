"""Memory of what models share, in bytes: a worker's data and graph, its ranking phase, and what holds them.

Every function returns parts by name, and its constants are what the code that it speaks of holds at its peak: arrays of
one row per user or item, numbers per interaction. docs/benchmarks/memory.md compares the whole with measured runs.

Symbols: U users, I items, E interactions, d embedding, h hidden, M modalities, W workers, B batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from diffmm_dist.losses import contrastive
from diffmm_dist.models.common.ranking import PLANNED_TOGETHER

FLOAT, INT = 4, 8
Parts = dict[str, int]
ADAM_KEEPS = 3  # value and two moments; the gradient comes on top while a phase trains

_INTERACTION_INTS = 6  # of an interaction for the whole run: item, user, key, number; negative, place in the epoch
_EDGE_INTS = 4  # of an edge of the real graph: its two directions by target and by source, weights in both orders
_LOCAL_INTS = 1  # the item's local number, where there are others' items
DGL_INTS = 6  # DGL's own forms of the same edges
_NEGATIVES_INTS = 9  # of an interaction while negatives and the order of batches are drawn
_PLANNED_INTS = (
    14  # of an interaction whose batch is planned: as drawn, local numbers, distinct nodes, rows that are read
)
_EXCHANGED_INTS = 10  # likewise, where workers tell each other what they read
_BATCH_INTS, _BATCH_ROWS = 24, 4  # of an interaction of a batch: ids and plans; embedding rows and their gradients
_USER_INTS, _ITEM_INTS = 16, 12  # pointers, counts, scales and loops, per user and per item


@dataclass(frozen=True)
class Share:
    """How much of the data a worker has; the halo is bounded from above, a good partition needs less.

    Attributes:
        num_users: U, of all workers.
        num_items: I, of all workers.
        num_interactions: E, of all workers, in training.
        num_workers: W.
        users: own users.
        items: own items.
        interactions: their training interactions.
        held_out: interactions of the own users in the other splits.
        halo: items of other workers that own users have interacted with, at most.
        counts: rows of further axes, of all workers, by name.
        table_rows: rows of tables, of all workers, by name.
    """

    num_users: int
    num_items: int
    num_interactions: int
    num_workers: int
    users: int
    items: int
    interactions: int
    held_out: int
    halo: int
    counts: Mapping[str, int] = field(default_factory=dict)
    table_rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def even(
        cls,
        *,
        num_users: int,
        num_items: int,
        num_interactions: int,
        held_out: int,
        num_workers: int,
        counts: Mapping[str, int] | None = None,
        table_rows: Mapping[str, int] | None = None,
    ) -> "Share":
        """Return an even share."""
        users, items, interactions, others = (
            -(-count // num_workers) for count in (num_users, num_items, num_interactions, held_out)
        )
        halo = 0 if num_workers == 1 else min(interactions, num_items - items)
        sizes = num_users, num_items, num_interactions, num_workers
        return cls(*sizes, users, items, interactions, others, halo, counts or {}, table_rows or {})

    def everything(self) -> "Share":
        """Return the share of a worker that has the whole graph."""
        return replace(
            self, num_workers=1, users=self.num_users, items=self.num_items, interactions=self.num_interactions, halo=0
        )


@dataclass(frozen=True)
class ModelMemory:
    """What a model needs on one worker.

    Attributes:
        kept: parts that live from one phase to the next.
        phases: what comes on top in each phase of training.
        embedding: what comes on top while the final embeddings are computed.
        width: columns of the final embeddings.
        trained: one copy of all parameters.
        largest: the largest of them.
        reading: parts while its own tables of the dataset are read.
    """

    kept: Parts
    phases: Mapping[str, Parts] = field(default_factory=dict)
    embedding: int = 0
    width: int = 1
    trained: int = 0
    largest: int = 0
    reading: Parts = field(default_factory=dict)


def largest(*alternatives: Parts) -> Parts:
    """Return those parts that add up to most, of what does not live at the same time."""
    return max(alternatives, key=lambda parts: sum(parts.values()))


def interactions(share: Share, *, trains: bool = True) -> int:
    """Return the bytes of the interactions: of a model that does not train on them, items and users alone."""
    numbers = _INTERACTION_INTS if trains else 2
    return (share.interactions * numbers + share.held_out + share.users * _USER_INTS) * INT


def graph(share: Share, *, dgl: bool) -> int:
    """Return the bytes of the real graph, with DGL's forms of it or without."""
    numbers = _EDGE_INTS + _LOCAL_INTS * (share.num_workers > 1) + DGL_INTS * dgl
    local_items = share.items + share.halo
    return (share.interactions * numbers + share.users * _USER_INTS + local_items * _ITEM_INTS) * INT


def ranking_phase(share: Share, *, gradients: int, step: Parts, dim: int, batch: int) -> Parts:
    """Return what the phase that goes through the interactions needs on top: its preparation or one of its steps.

    Args:
        share: the data.
        gradients: of what the phase trains.
        step: what a step holds besides, before its loss over the batch.
        dim: d.
        batch: interactions of a step, of all workers.
    """
    own = -(-batch // share.num_workers)
    planned = max(batch, min(PLANNED_TOGETHER, share.num_interactions))
    of_plan = _PLANNED_INTS + _EXCHANGED_INTS * (share.num_workers > 1)
    ids = max(own * _BATCH_INTS, -(-planned // share.num_workers) * of_plan) * INT
    return largest(
        {"gradients": gradients, **step, "halo": halo_rows(share, dim), "batch": ids + own * _BATCH_ROWS * dim * FLOAT},
        {"negatives": share.interactions * _NEGATIVES_INTS * INT},
    )


def halo_rows(share: Share, dim: int) -> int:
    """Return the bytes of others' rows while two item tables propagate: received, beside the own ones, and summed."""
    return 0 if share.num_workers == 1 else (6 * share.halo + 3 * share.items) * dim * FLOAT


def layout_messages(share: Share, graph: Share, rows: int, dim: int) -> int:
    """Return the bytes of tables on their way between rows and columns: sent, received and put together.

    ID tables go there and come back outside the steps, which need more than they do.

    Args:
        share: the data.
        graph: what of it is in the worker's graph: by rows there are no such messages.
        rows: own rows of the tables that a step brings there, or of those that come back if these are more.
        dim: d.
    """
    return 0 if graph == share else 3 * rows * dim * FLOAT


def similarities(anchors: int, nodes: int) -> int:
    """Return the bytes of a contrastive term's similarities that are held at a time: a block, and the one before."""
    at_a_time = min(anchors, max(contrastive.LEAST_ANCHORS, contrastive.BLOCK_ELEMENTS // max(nodes, 1)))
    blocks = min(2, -(-anchors // max(at_a_time, 1)))
    return blocks * min(at_a_time * nodes, contrastive.BLOCK_ELEMENTS) * FLOAT
