"""What one worker owns, and how its rows are numbered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World


class OwnRows(NamedTuple):
    """A worker's rows of an axis.

    Attributes:
        ownership: who owns which rows.
        ids: id of each own row, int64 (own rows,).
    """

    ownership: Ownership
    ids: Tensor


@dataclass(frozen=True, eq=False)
class AllRows:
    """An axis, with the id of every row, of all workers.

    Attributes:
        ownership: who owns which rows.
        ids: id of each row, int64 (N,).
    """

    ownership: Ownership
    ids: Tensor

    @property
    def own(self) -> OwnRows:
        """This worker's rows."""
        own = self.ownership.own
        return OwnRows(self.ownership, self.ids[own.start : own.stop])

    @cached_property
    def rows(self) -> Tensor:
        """Row of each id, int64 (N,)."""
        return torch.argsort(self.ids)


def joined(axes: Sequence[AllRows]) -> AllRows:
    """Return several axes as one: a worker has its rows of the first, then those of the next.

    The ids of an axis follow those of the one before it. So ids do not depend on the number of workers, but rows do:
    they are for plans of exchanges, and nothing that is saved may lie in their order.
    """
    starts = [0, *accumulate(axis.ownership.total for axis in axes)]
    bounds = list(zip(*(axis.ownership.bounds for axis in axes), strict=True))
    parts = [
        axis.ids[low:high] + start
        for lows, highs in pairwise(bounds)
        for axis, start, low, high in zip(axes, starts[:-1], lows, highs, strict=True)
    ]
    return AllRows(Ownership(tuple(map(sum, bounds)), axes[0].ownership.rank), torch.cat(parts))


@dataclass(frozen=True, eq=False)
class Shard:
    """One worker's users and items, and its rows of whatever other axes the dataset has.

    Rows are numbered as they lie in the dataset's files, where each worker owns contiguous ranges. ``partition``
    reorders them; an id is the number that a row had before. Ids key every random draw and break ties, so that results
    depend neither on the number of workers nor on the partition. Without a partition ids are rows.

    Attributes:
        world: the workers.
        users: who owns which user rows.
        items: who owns which item rows.
        user_ids: id of each own user, int64 (own users,).
        item_ids: id of each item row, of all workers, int64 (I,).
        further: other axes by name, such as the entities of a knowledge graph that are no items.
        messages: as what rows of tables travel from worker to worker while they propagate, such as bfloat16 in half the
            bytes; None for as they are. It concerns nothing else that workers send.
    """

    world: World
    users: Ownership
    items: Ownership
    user_ids: Tensor
    item_ids: Tensor
    further: Mapping[str, AllRows] = field(default_factory=dict)
    messages: torch.dtype | None = None

    @classmethod
    def whole(cls, num_users: int, num_items: int, *, world: World | None = None) -> "Shard":
        """Return even ranges of rows that are their own ids: everything in a world of one."""
        world = world or World.single()
        users, items = (Ownership.even(n, rank=world.rank, size=world.size) for n in (num_users, num_items))
        user_ids = torch.arange(*users.own, device=world.device)
        return cls(world, users, items, user_ids, torch.arange(num_items, device=world.device))

    @property
    def num_users(self) -> int:
        """U, of all workers."""
        return self.users.total

    @property
    def num_items(self) -> int:
        """I, of all workers."""
        return self.items.total

    def axis(self, name: str) -> OwnRows:
        """Return this worker's rows of an axis: ``users``, ``items`` or another one of the dataset."""
        own = {"users": OwnRows(self.users, self.user_ids), "items": OwnRows(self.items, self.own_item_ids)}
        return own[name] if name in own else self.further[name].own

    @property
    def all_items(self) -> AllRows:
        """The items of all workers."""
        return AllRows(self.items, self.item_ids)

    @property
    def own_item_ids(self) -> Tensor:
        """Id of each own item, int64 (own items,)."""
        return self.item_ids[self.items.own.start : self.items.own.stop]

    @cached_property
    def item_rows(self) -> Tensor:
        """Row of each item id, int64 (I,)."""
        return torch.argsort(self.item_ids)
