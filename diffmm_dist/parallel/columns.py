"""The part of every user's row of items that a worker holds."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World


@dataclass(frozen=True, eq=False)
class Columns:
    """A range of items, and the workers that hold the other ranges of the same rows.

    Attributes:
        world: the workers that make up whole rows together.
        ownership: who of them holds which item rows.
        ids: id of each own item, int64 (C,), by which random values and ties are keyed (parallel/shard.py).
    """

    world: World
    ownership: Ownership
    ids: Tensor

    @classmethod
    def whole(cls, num_items: int) -> "Columns":
        """Return all items, which are their own ids, held by one worker."""
        return cls(World.single(), Ownership((0, num_items)), torch.arange(num_items))

    @property
    def total(self) -> int:
        """I, of all workers."""
        return self.ownership.total

    @property
    def size(self) -> int:
        """C, own items."""
        return self.ids.numel()

    @cached_property
    def by_id(self) -> Tensor | None:
        """Own columns in ascending order of their ids, int64 (C,); None where they are in that order already."""
        order = torch.argsort(self.ids)
        return None if bool((order.diff() == 1).all()) else order

    @cached_property
    def sorted_ids(self) -> Tensor:
        """Ids of own items, ascending, int64 (C,)."""
        return self.ids.sort().values
