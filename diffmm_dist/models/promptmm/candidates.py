"""The items that a user's list has besides the positive.

Shape suffixes: b own users of a batch, K items of each, U own users, N the teacher's first items.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffmm_dist.data.sampling import NegativeSampler
from diffmm_dist.data.training import TrainingData
from diffmm_dist.evaluation.evaluator import best_of_blocks, blocks_of_items
from diffmm_dist.graph.propagate import Rows
from diffmm_dist.models.common.ranking import FurtherItems
from diffmm_dist.parallel.collectives import all_reduce_largest
from diffmm_dist.parallel.random import RandomStream

_USERS_RANKED = 1024  # at a time, at most


def _keys(places_b: Tensor, count: int) -> Tensor:
    """Return what keys each draw, (b, K)."""
    return places_b[:, None] * count + torch.arange(count, device=places_b.device)


def random_negatives(data: TrainingData, count: int) -> FurtherItems:
    """Draw items that the user has not interacted with, uniformly and with repeats."""
    sampler = NegativeSampler(data.interactions)

    def draw(rows_b: Tensor, places_b: Tensor, stream: RandomStream) -> Tensor:
        rows_bK = rows_b[:, None].expand(-1, count)
        return sampler.draw(rows_bK, _keys(places_b, count), stream)

    return draw


def released_negatives(data: TrainingData, count: int) -> FurtherItems:
    """Draw ids from 0 to the largest that any user of the batch has interacted with, whoever the user is.

    The released program's: it builds a graph of the batch's rows, draws pairs of nodes without an edge, and takes their
    second nodes alone.
    """
    interactions, world = data.interactions, data.shard.world
    ends_U, none = interactions.indptr[1:], interactions.indices.new_zeros(1)
    # A row's last id is its largest; one of a user without interactions is never read, since no batch has it.
    largest_U = torch.cat([none, interactions.indices])[ends_U]

    def draw(rows_b: Tensor, places_b: Tensor, stream: RandomStream) -> Tensor:
        of_batch = torch.cat([none, largest_U[rows_b]]).max()
        return stream.integers(_keys(places_b, count), all_reduce_largest(of_batch, world) + 1)

    return draw


class FromTeacher:
    """Draws from the items that the teacher ranks first for a user, those of training left out, with repeats.

    Args:
        data: the training data.
        count: K.
        topk: N.
        teacher: returns the teacher's final embeddings, when they are there.
    """

    def __init__(self, data: TrainingData, count: int, *, topk: int, teacher: Callable[[], Rows]) -> None:
        self._data, self._count, self._topk, self._teacher = data, count, topk, teacher
        self._lists: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def begin(self) -> None:
        """Rank, the first time; every worker calls it at the same time."""
        if self._lists is not None:
            return
        users_UD, items_ID = self._teacher()
        shard, interactions = self._data.shard, self._data.interactions
        lists_UN = best_of_blocks(
            users_UD,
            blocks_of_items(items_ID, shard),
            torch.arange(users_UD.shape[0], device=users_UD.device),
            masked=[interactions],
            k=min(self._topk, shard.num_items),
            batch_size=_USERS_RANKED,
            most_users=max(shard.users.sizes),
        )
        self._lists = lists_UN, (lists_UN >= 0).sum(dim=1)

    def __call__(self, rows_b: Tensor, places_b: Tensor, stream: RandomStream) -> Tensor:
        """Return the drawn ids, (b, K)."""
        assert self._lists is not None
        lists_UN, counts_U = self._lists
        drawn = stream.integers(_keys(places_b, self._count), counts_U[rows_b][:, None])
        return lists_UN[rows_b[:, None], drawn]
