"""What a model is built from: one worker's slice of the training data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.knowledge import Knowledge
from diffmm_dist.data.schema import Split
from diffmm_dist.host_rows import Table
from diffmm_dist.parallel.collectives import CONTROL, all_reduce_sum_
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import AllRows, Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR


@dataclass(frozen=True, eq=False)
class TrainingData:
    """One worker's slice of the training data.

    Attributes:
        shard: which users and items this worker owns.
        interactions: training interactions of the own users (own users x item ids).
        num_interactions: E, of all workers.
        features: by modality, float32 (own items, width), on the device or in main memory.
        knowledge: the facts of the own items and further entities, of models that read them.
        name_of_user: what an own user, by local number, is called in the raw data, for messages.
    """

    shard: Shard
    interactions: CSR
    num_interactions: int
    features: Mapping[str, Table]
    knowledge: Knowledge | None = None
    name_of_user: Callable[[int], str] = str

    @cached_property
    def interaction_ids(self) -> Tensor:
        """Number of each own interaction among all, ordered by user id and item id; int64 (own interactions,).

        Every worker asks for it at the same time.
        """
        counts = self.interactions.row_counts
        starts = torch.zeros(self.shard.num_users + 1, dtype=torch.int64, device=counts.device)
        starts[self.shard.user_ids + 1] = counts
        starts = all_reduce_sum_(starts, self.shard.world, purpose=CONTROL).cumsum(0)
        shift = starts[self.shard.user_ids] - self.interactions.indptr[:-1]
        return torch.repeat_interleave(shift, counts) + torch.arange(self.interactions.num_entries, device=shift.device)


def shard_of(dataset: Dataset, world: World, *, messages: torch.dtype | None = None) -> Shard:
    """Return what this worker owns of a dataset: whole parts of a partitioned one, else even ranges.

    Args:
        dataset: the dataset.
        world: the workers.
        messages: as what rows of tables travel while they propagate; None for as they are.

    Raises:
        UserError: a file of the dataset is damaged.
    """
    axes = {
        name: AllRows(_ownership(dataset, name, world), dataset.source_rows(name).to(world.device))
        for name in dataset.manifest.counts
        if name != "users"
    }
    items, users = axes.pop("items"), _ownership(dataset, "users", world)
    user_ids = dataset.source_rows("users", users.own).to(world.device)
    return Shard(world, users, items.ownership, user_ids, items.ids, axes, messages)


def _ownership(dataset: Dataset, axis: str, world: World) -> Ownership:
    """Return who owns which rows of an axis: those of its parts, or an even range where the axis is not cut."""
    partition = dataset.manifest.partition
    if partition is None or axis not in partition.axes:
        return Ownership.even(dataset.manifest.counts[axis], rank=world.rank, size=world.size)
    return Ownership.of_parts(partition.axes[axis].bounds, rank=world.rank, size=world.size)


def shard_interactions(dataset: Dataset, split: Split, shard: Shard) -> CSR:
    """Return the interactions of the own users with item ids (own users x item ids), on the worker's device."""
    pairs = dataset.interactions(split, shard.users.own).to(shard.world.device)
    if dataset.manifest.partition is None:
        return pairs
    return CSR.from_pairs(
        pairs.row_ids, shard.item_ids[pairs.indices], num_rows=pairs.num_rows, num_columns=pairs.num_columns
    )
