"""How tables are spread over the workers while they propagate: by their rows, or by their columns.

Tables belong to workers by rows. A product A^ X treats every column of X by itself, so a worker that holds some columns
of all rows, and the whole graph, takes part in any number of products without an exchange. ``ColumnLayout`` brings
tables there and what is read of the results back, in one message each; ``RowLayout`` leaves them as they are, and every
product exchanges halos (relation.py).

Shape suffixes: N own rows, A all rows, R rows that all workers read, C own columns, D all columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from diffmm_dist.errors import UserError
from diffmm_dist.graph.propagate import Rows, select
from diffmm_dist.graph.targets import Counts, Places
from diffmm_dist.parallel.collectives import gather_each, gather_owned, gather_rows, start_exchange, worker_counts
from diffmm_dist.parallel.halo import Halo, extended
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

TRAFFIC = "layout"
TABLES = "layout_tables"  # tables that stay in the layout for many steps
_PLAN = "layout_plan"
_PARTS = 3  # of what a worker reads in a step: users, own items, others' items


@dataclass(frozen=True, eq=False)
class Reads:
    """Rows of the final embeddings that the workers read in one step.

    Attributes:
        users: own users that this worker reads, local numbers, ascending, int64, each once.
        items: own items that any worker reads, likewise.
        halo: how this worker reaches the items that it reads.
    """

    users: Tensor
    items: Tensor
    halo: Halo


@dataclass(frozen=True, eq=False)
class Reading:
    """How rows of a result get to the workers that read them.

    Attributes:
        rows: rows of users and of items in this layout that any worker reads, each once; None for all.
        leaving: places among them of the rows that leave, a worker's after the other's; None for all, once.
        counts: how many go to each worker.
        at: places of those that arrive, in tables of users and of items; None for all.
        sizes: rows of these tables.
        halo: how items that are still missing then are reached; None where none is.
        edges: how many edges of the real graph lead to ``rows``; None where they are not counted.
    """

    rows: Places
    leaving: Places
    counts: tuple[list[int], list[int]]
    at: Places
    sizes: tuple[int, int]
    halo: Halo | None = None
    edges: Counts | None = None

    def place(self, read: Rows) -> Rows:
        """Return tables of own users and of local items that hold rows that arrived, and zeros elsewhere."""
        users, items = map(_placed, read, self.at, self.sizes)
        return users, items if self.halo is None else extended(items, self.halo)


@dataclass(frozen=True, eq=False)
class StepReading:
    """What is read in a step.

    Attributes:
        local: of the users and of all local items, as ``Reads`` names them.
        own: of the same rows, each at its owner alone.
    """

    local: Reading
    own: Reading


class Layout(Protocol):
    """A way to spread tables."""

    @property
    def shard(self) -> Shard:
        """What numbers the rows of the graph as the layout has it."""

    def pairs(self, own: CSR) -> CSR:
        """Return the edges of the layout's users, from those of the own ones; every worker calls it."""

    def width(self, columns: int) -> int:
        """Return how many columns of a table a worker propagates."""

    def enter(self, users: Sequence[Tensor], items: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return tables of own users and of own items, each (N, D), as the layout has them; every worker calls it."""

    def take(self, users: Tensor, items: Tensor) -> Rows:
        """Return tables of own users and of own items, (N, D), as the layout has them, exactly, to be kept there.

        There is no gradient. Every worker calls it at the same time.
        """

    def give_back(self, users: Tensor, items: Tensor) -> Rows:
        """Return what ``take`` was given from what it returned, whatever has been done to it since."""

    @property
    def whole(self) -> Reading:
        """All own rows of users and of items."""

    def readings(self, steps: Sequence[Reads]) -> list[StepReading]:
        """Plan what is read in several steps; every worker calls it at the same time."""

    def leave(self, read: Sequence[Rows], readings: Sequence[Reading]) -> list[Rows]:
        """Return the rows that this worker reads of users and of items, (n, D), from ``rows`` of each reading."""


@dataclass(frozen=True, eq=False)
class RowLayout:
    """Tables stay where they are.

    Attributes:
        shard: what this worker owns.
    """

    shard: Shard

    def pairs(self, own: CSR) -> CSR:
        """Return the same edges."""
        return own

    def width(self, columns: int) -> int:
        """Return all columns."""
        return columns

    def enter(self, users: Sequence[Tensor], items: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the same tables."""
        return list(users), list(items)

    def take(self, users: Tensor, items: Tensor) -> Rows:
        """Return the same tables."""
        return users, items

    give_back = take

    @property
    def whole(self) -> Reading:
        """All own rows."""
        sizes = self.shard.users.own.size, self.shard.items.own.size
        nothing = (None, None)
        return Reading(nothing, nothing, ([sizes[0]], [sizes[1]]), nothing, sizes)

    def readings(self, steps: Sequence[Reads]) -> list[StepReading]:
        """Return the same rows: results are where they are read, but for other workers' items."""
        found = []
        for reads in steps:
            rows = reads.users, reads.items
            counts = [reads.users.numel()], [reads.items.numel()]
            own = replace(self.whole, rows=rows, counts=counts, at=rows)
            found.append(StepReading(replace(own, halo=reads.halo), own))
        return found

    def leave(self, read: Sequence[Rows], readings: Sequence[Reading]) -> list[Rows]:
        """Return the same rows."""
        return list(read)


@dataclass(frozen=True, eq=False)
class ColumnLayout:
    """Each worker has some columns of all rows.

    Attributes:
        own: what this worker owns by rows.
        shard: all rows, as the only worker would have them.
        columns: who has which columns.
    """

    own: Shard
    shard: Shard
    columns: Ownership

    @classmethod
    def of(cls, shard: Shard, *, width: int) -> "ColumnLayout":
        """Return the layout of tables of a width; every worker calls it at the same time.

        Raises:
            UserError: there are more workers than columns.
        """
        world = shard.world
        if world.size > width:
            raise UserError(
                f"graph.layout=columns gives each worker some of the {width} columns (model.embedding_dim), but there "
                f"are {world.size} workers; set it to rows, or use fewer workers"
            )
        everything = Shard(
            World.single(world.device),
            Ownership((0, shard.num_users)),
            Ownership((0, shard.num_items)),
            gather_owned(shard.user_ids, shard.users, world, purpose=_PLAN),
            shard.item_ids,
        )
        return cls(shard, everything, Ownership.even(width, rank=world.rank, size=world.size))

    def pairs(self, own: CSR) -> CSR:
        """Return the edges of all users."""
        world = self.own.world
        counts = gather_owned(own.row_counts, self.own.users, world, purpose=_PLAN)
        indices = gather_rows(own.indices, worker_counts(own.num_entries, world), world, purpose=_PLAN)
        return CSR(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), indices, own.num_columns)

    def width(self, columns: int) -> int:
        """Return how many of them this worker has."""
        return self.columns.own.size

    def enter(self, users: Sequence[Tensor], items: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the own columns of all rows, (A, C) each; without any table nothing is sent."""
        if not users and not items:
            return [], []
        counts = [self.own.users.sizes] * len(users) + [self.own.items.sizes] * len(items)
        entered = _Transposed.apply(self, counts, True, *users, *items)  # type: ignore[no-untyped-call, unused-ignore]
        return list(entered[: len(users)]), list(entered[len(users) :])

    def take(self, users: Tensor, items: Tensor) -> Rows:
        """Return the own columns of all rows, (A, C) each."""
        counts = [self.own.users.sizes, self.own.items.sizes]
        all_users, all_items = self.to_columns([users.detach(), items.detach()], counts, kept=True)
        return all_users, all_items

    def give_back(self, users: Tensor, items: Tensor) -> Rows:
        """Return all columns of the own rows, (N, D) each."""
        counts = [self.own.users.sizes, self.own.items.sizes]
        own_users, own_items = self.to_rows([users.detach(), items.detach()], counts, kept=True)
        return own_users, own_items

    @property
    def whole(self) -> Reading:
        """All own rows."""
        sizes, nothing = (self.own.users.own.size, self.own.items.own.size), (None, None)
        return Reading(nothing, nothing, (self.own.users.sizes, self.own.items.sizes), nothing, sizes)

    def readings(self, steps: Sequence[Reads]) -> list[StepReading]:
        """Tell all workers which rows this one reads."""
        world, users, items = self.own.world, self.own.users.own, self.own.items.own
        ids = [[reads.users + users.start, reads.items + items.start, reads.halo.global_ids] for reads in steps]
        sizes = torch.tensor([[part.numel() for part in parts] for parts in ids])  # for the host
        each = gather_each([sizes], [[len(steps)] * world.size], world, purpose=_PLAN)[0]
        counts: list[list[list[int]]] = each.view(world.size, -1, _PARTS).transpose(0, 1).tolist()
        totals = [[sum(of_worker) for of_worker in of_step] for of_step in counts]
        asked = gather_each([torch.cat(parts) for parts in ids], totals, world, purpose=_PLAN)
        return [self._reading(*of_step) for of_step in zip(steps, asked, counts, strict=True)]

    def _reading(self, reads: Reads, asked: Tensor, counts: Sequence[Sequence[int]]) -> StepReading:
        """Return what is read in a step.

        Args:
            reads: by this worker.
            asked: ids of users, of own items and of others' items, of one worker after the other.
            counts: how many of each, by worker.
        """
        parts = asked.split([count for of_worker in counts for count in of_worker])
        users, items = torch.cat(parts[::_PARTS]), torch.cat(parts[1::_PARTS])  # items ascend, as their owners do
        own_counts = [of_worker[0] for of_worker in counts], [of_worker[1] for of_worker in counts]
        at = reads.users, reads.items
        own = replace(self.whole, rows=(users, items), counts=own_counts, at=at)
        places = torch.arange(items.numel(), device=items.device).split(own_counts[1])
        of_others = [torch.searchsorted(items, part) for part in parts[2::_PARTS]]
        leaving = torch.cat([part for both in zip(places, of_others, strict=True) for part in both])
        halo_rows = torch.arange(reads.halo.num_inner, reads.halo.num_local, device=items.device)
        local = replace(
            own,
            leaving=(None, leaving),
            counts=(own_counts[0], [of_worker[1] + of_worker[2] for of_worker in counts]),
            at=(reads.users, torch.cat([reads.items, halo_rows])),
            sizes=(own.sizes[0], reads.halo.num_local),
        )
        return StepReading(local, own)

    def leave(self, read: Sequence[Rows], readings: Sequence[Reading]) -> list[Rows]:
        """Return all columns of the rows that this worker reads."""
        tables = [
            table for rows, reading in zip(read, readings, strict=True) for table in select(rows, reading.leaving)
        ]
        counts = [of_side for reading in readings for of_side in reading.counts]
        left = _Transposed.apply(self, counts, False, *tables)  # type: ignore[no-untyped-call, unused-ignore]
        return list(zip(left[::2], left[1::2], strict=True))

    def to_columns(self, tables: Sequence[Tensor], counts: Sequence[list[int]], *, kept: bool = False) -> list[Tensor]:
        """Return the own columns of every worker's rows of each table, one worker's after the other's, (R, C).

        Args:
            tables: own rows (N, D).
            counts: of each table, rows of every worker.
            kept: they are there to stay, and arrive as they are, however messages are rounded.
        """
        parts = [table.split(self.columns.sizes, dim=1) for table in tables]
        sent = [torch.cat([part[rank].reshape(-1) for part in parts]) for rank in range(len(self.columns.sizes))]
        mine = self.columns.own.size
        shapes = [[(of_table[rank], mine) for of_table in counts] for rank in range(len(sent))]
        return [torch.cat(blocks) for blocks in self._exchanged(sent, shapes, kept)]

    def to_rows(self, tables: Sequence[Tensor], counts: Sequence[list[int]], *, kept: bool = False) -> list[Tensor]:
        """Return the own rows of each table with every worker's columns, (N, D): the inverse of ``to_columns``."""
        parts = [table.split(of_table) for table, of_table in zip(tables, counts, strict=True)]
        sizes, rank = self.columns.sizes, self.own.world.rank
        sent = [torch.cat([part[other].reshape(-1) for part in parts]) for other in range(len(sizes))]
        shapes = [[(of_table[rank], width) for of_table in counts] for width in sizes]
        return [torch.cat(blocks, dim=1) for blocks in self._exchanged(sent, shapes, kept)]

    def _exchanged(
        self, sent: Sequence[Tensor], shapes: Sequence[Sequence[tuple[int, int]]], kept: bool
    ) -> list[list[Tensor]]:
        """Send each worker its values; return what came from each, for every table.

        Args:
            sent: values for each worker, flat.
            shapes: of what each worker sends of every table.
            kept: see ``to_columns``.
        """
        sizes = [[rows * columns for rows, columns in of_worker] for of_worker in shapes]
        received = start_exchange(
            torch.cat(list(sent)),
            [values.numel() for values in sent],
            list(map(sum, sizes)),
            self.own.world,
            purpose=TABLES if kept else TRAFFIC,
            dtype=None if kept else self.own.messages,
        )().split([size for of_worker in sizes for size in of_worker])
        blocks = [values.view(shape) for values, shape in zip(received, [s for w in shapes for s in w], strict=True)]
        num_tables = len(shapes[0])
        return [blocks[table::num_tables] for table in range(num_tables)]


def _placed(rows: Tensor, own: Tensor | None, size: int) -> Tensor:
    """Return a table of ``size`` rows that has the given ones at their places."""
    return rows if own is None else rows.new_zeros(size, rows.shape[1]).index_copy_(0, own, rows)


class _Transposed(torch.autograd.Function):
    """From rows to columns or back; the gradients go the other way."""

    @staticmethod
    def forward(
        ctx: Any, layout: ColumnLayout, counts: list[list[int]], to_columns: bool, *tables: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.layout, ctx.counts, ctx.to_columns = layout, counts, to_columns
        return tuple((layout.to_columns if to_columns else layout.to_rows)(tables, counts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        layout: ColumnLayout = ctx.layout
        back = layout.to_rows if ctx.to_columns else layout.to_columns
        return None, None, None, *back(gradients, ctx.counts)
