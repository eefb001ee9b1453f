"""Workers as a grid: some split the users among themselves, others the items."""

from dataclasses import dataclass, replace

import torch.distributed as dist

from diffmm_dist.parallel.world import World


@dataclass(frozen=True)
class Mesh:
    """This worker's row and column of a grid of ``data.size`` x ``items.size`` workers.

    Worker r stands in row r // items.size and column r % items.size. The workers of a row work on the same users, each
    at its own share of the items; the workers of a column hold the same items, each for its own share of the users.

    Attributes:
        data: this worker among its column; its rank is the row.
        items: this worker among its row; its rank is the column.
    """

    data: World
    items: World

    @classmethod
    def of(cls, world: World, *, num_item_shards: int) -> "Mesh":
        """Arrange the workers; every worker calls it at the same time.

        Args:
            world: the workers.
            num_item_shards: workers per row, a divisor of their number.
        """
        columns, rows = num_item_shards, world.size // num_item_shards
        row, column = divmod(world.rank, columns)
        by_row = [list(range(start, start + columns)) for start in range(0, world.size, columns)]
        by_column = [list(range(start, world.size, columns)) for start in range(columns)]
        return cls(data=_part(world, by_column, row, rows), items=_part(world, by_row, column, columns))


def _part(world: World, groups: list[list[int]], rank: int, size: int) -> World:
    """Return this worker among its group; neither one worker nor all need a process group of their own."""
    group = world.group
    if 1 < size < world.size:
        own, _ = dist.new_subgroups_by_enumeration(groups, timeout=world.timeout)
        assert not isinstance(own, int)  # which says that this worker is in none of the groups
        group = own
    return replace(world, rank=rank, size=size, group=group)
