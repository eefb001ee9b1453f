"""How tables are spread over the workers while they propagate: by their rows, or by their columns.

Tables belong to workers by rows. A product A^ X treats every column of X by itself, so a worker that holds some columns
of all rows, and the whole graph, takes part in any number of products without an exchange. ``ColumnLayout`` brings
tables there and what is read of the results back, in one message each; ``RowLayout`` leaves them as they are, and every
product exchanges halos (relation.py).

Shape suffixes: N own rows, A all rows, R read rows of all workers, C own columns, D all columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffmm_dist.errors import UserError
from diffmm_dist.graph.propagate import Rows
from diffmm_dist.graph.targets import Places
from diffmm_dist.parallel.collectives import exchange_rows, gather_owned, gather_rows, start_exchange, worker_counts
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

TRAFFIC = "layout"
_PLAN = "layout_plan"


@dataclass(frozen=True, eq=False)
class Reading:
    """Which rows of a result the workers read.

    Attributes:
        own: own rows that are read, local numbers, int64; of users, then of items. None for all.
        sizes: own rows of users and of items.
        rows: rows of a result in this layout that any worker reads, a worker's after the other's.
        counts: how many each worker reads.
    """

    own: Places
    sizes: tuple[int, int]
    rows: Places
    counts: tuple[list[int], list[int]]

    def place(self, read: Rows) -> Rows:
        """Return tables of own users and own items that hold rows that were read, and zeros elsewhere."""
        users, items = map(_placed, read, self.own, self.sizes)
        return users, items


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

    def reading(self, read: Rows | None) -> Reading:
        """Plan to read own users and own items, int64, each once; None reads all. Every worker calls it."""

    def leave(self, read: Sequence[Rows], readings: Sequence[Reading]) -> list[Rows]:
        """Return own rows that are read of users and of items, (n, D), from ``rows`` of each reading in this layout."""


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

    def reading(self, read: Rows | None) -> Reading:
        """Return the same rows: results are where they are read."""
        sizes = self.shard.users.own.size, self.shard.items.own.size
        own = read or (None, None)
        counts = [size if rows is None else rows.numel() for rows, size in zip(own, sizes, strict=True)]
        return Reading(own, sizes, own, ([counts[0]], [counts[1]]))

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
        """Return the own columns of all rows, (A, C) each."""
        counts = [self.own.users.sizes] * len(users) + [self.own.items.sizes] * len(items)
        entered = _Transposed.apply(self, counts, True, *users, *items)  # type: ignore[no-untyped-call, unused-ignore]
        return list(entered[: len(users)]), list(entered[len(users) :])

    def reading(self, read: Rows | None) -> Reading:
        """Tell all workers which rows this one reads."""
        owners, world = (self.own.users, self.own.items), self.own.world
        own_sizes = owners[0].own.size, owners[1].own.size
        if read is None:
            return Reading((None, None), own_sizes, (None, None), (owners[0].sizes, owners[1].sizes))
        sizes = torch.tensor([[rows.numel() for rows in read]], device=world.device)
        every, each = [1] * world.size, sizes.expand(world.size, -1)
        counts = exchange_rows(each, every, every, world, purpose=_PLAN).T.tolist()
        ids = torch.cat([rows + owner.own.start for rows, owner in zip(read, owners, strict=True)])
        per_worker = [users + items for users, items in zip(*counts, strict=True)]
        asked = exchange_rows(
            ids.repeat(world.size), [ids.numel()] * world.size, per_worker, world, purpose=_PLAN
        ).split([count for pair in zip(*counts, strict=True) for count in pair])
        return Reading(read, own_sizes, (torch.cat(asked[::2]), torch.cat(asked[1::2])), (counts[0], counts[1]))

    def leave(self, read: Sequence[Rows], readings: Sequence[Reading]) -> list[Rows]:
        """Return all columns of the own rows."""
        tables = [table for pair in read for table in pair]
        counts = [of_side for reading in readings for of_side in reading.counts]
        left = _Transposed.apply(self, counts, False, *tables)  # type: ignore[no-untyped-call, unused-ignore]
        return list(zip(left[::2], left[1::2], strict=True))

    def to_columns(self, tables: Sequence[Tensor], counts: Sequence[list[int]]) -> list[Tensor]:
        """Return the own columns of every worker's rows of each table, one worker's after the other's, (R, C).

        Args:
            tables: own rows (N, D).
            counts: of each table, rows of every worker.
        """
        parts = [table.split(self.columns.sizes, dim=1) for table in tables]
        sent = [torch.cat([part[rank].reshape(-1) for part in parts]) for rank in range(len(self.columns.sizes))]
        mine = self.columns.own.size
        shapes = [[(of_table[rank], mine) for of_table in counts] for rank in range(len(sent))]
        return [torch.cat(blocks) for blocks in self._exchanged(sent, shapes)]

    def to_rows(self, tables: Sequence[Tensor], counts: Sequence[list[int]]) -> list[Tensor]:
        """Return the own rows of each table with every worker's columns, (N, D): the inverse of ``to_columns``."""
        parts = [table.split(of_table) for table, of_table in zip(tables, counts, strict=True)]
        sizes, rank = self.columns.sizes, self.own.world.rank
        sent = [torch.cat([part[other].reshape(-1) for part in parts]) for other in range(len(sizes))]
        shapes = [[(of_table[rank], width) for of_table in counts] for width in sizes]
        return [torch.cat(blocks, dim=1) for blocks in self._exchanged(sent, shapes)]

    def _exchanged(self, sent: Sequence[Tensor], shapes: Sequence[Sequence[tuple[int, int]]]) -> list[list[Tensor]]:
        """Send each worker its values; return what came from each, for every table.

        Args:
            sent: values for each worker, flat.
            shapes: of what each worker sends of every table.
        """
        sizes = [[rows * columns for rows, columns in of_worker] for of_worker in shapes]
        received = start_exchange(
            torch.cat(list(sent)),
            [values.numel() for values in sent],
            list(map(sum, sizes)),
            self.own.world,
            purpose=TRAFFIC,
            dtype=self.own.messages,
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
