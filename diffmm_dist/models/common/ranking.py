"""Ranking from pairs: batches with negatives, a step of an optimiser, and a phase that puts them together."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.data.sampling import NegativeSampler, check_negatives_exist
from diffmm_dist.data.training import TrainingData
from diffmm_dist.models.base import Optimization, Phase, PhaseContext
from diffmm_dist.models.common.ranking_batch import TRAFFIC, DrawnBatch, PlannedBatches, RankingBatch
from diffmm_dist.models.common.tables import EmbeddingTables
from diffmm_dist.parallel.collectives import CONTROL, agree, all_reduce_sum_
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.replicas import sum_gradients
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World

PLANNED_TOGETHER = 1 << 17  # interactions, whose plans are some 25 MB of all workers


def planned_together(size: int) -> int:
    """Return how many batches of so many interactions are planned with one another's messages."""
    return max(1, PLANNED_TOGETHER // size)


class _PlannedAhead(ABC):
    """Batches of an epoch, planned together, as many as have about ``PLANNED_TOGETHER`` interactions.

    Args:
        shard: what this worker owns.
        size: interactions of a batch, of all workers.
    """

    def __init__(self, shard: Shard, size: int) -> None:
        self._shard = shard
        self._at_a_time = planned_together(size)
        self._forget()

    def _forget(self) -> None:
        """Forget the plans of another epoch."""
        self._planned: tuple[range, PlannedBatches] | None = None

    @abstractmethod
    def _draw(self, index: int) -> list[DrawnBatch]:
        """Return the micro-batches of a batch of the epoch; every worker asks for them at the same time."""

    @property
    @abstractmethod
    def _count(self) -> int:
        """Batches of the epoch."""

    def __getitem__(self, index: int) -> RankingBatch:
        """Return a batch of the epoch; every worker asks for it at the same time."""
        if self._planned is None or index not in self._planned[0]:
            self._planned = None  # not two of them at a time
            places = range(index, min(index + self._at_a_time, self._count))
            self._planned = places, PlannedBatches(self._shard, [self._draw(place) for place in places])
        places, planned = self._planned
        return planned[index - places.start]


class RankingBatches(_PlannedAhead):
    """The training interactions in shuffled batches, each with a negative that is drawn once per epoch.

    Args:
        data: the training data.
        batch_size: interactions of a micro-batch, of all workers; the last one of an epoch may be shorter.
        num_micro_batches: of a batch; the last one of an epoch may have fewer.

    Attributes:
        num_examples: interactions of an epoch, of all workers.

    Raises:
        UserError: a user has interacted with every item.
    """

    def __init__(self, data: TrainingData, batch_size: int, num_micro_batches: int = 1) -> None:
        agree(lambda: check_negatives_exist(data.interactions, data.name_of_user), data.shard.world)
        super().__init__(data.shard, batch_size * num_micro_batches)
        self.num_examples = data.num_interactions
        self._data = data
        self._batch_size = batch_size
        self._num_micro_batches = num_micro_batches

    def begin(self, context: PhaseContext) -> int:
        """Draw an epoch's negatives and batches; return how many batches there are."""
        interactions, ids = self._data.interactions, self._data.interaction_ids
        negatives = NegativeSampler(interactions)
        self._negatives = negatives.draw(interactions.row_ids, ids, context.stream("negatives"))
        self._batches = EpochBatches(
            ids,
            total=self.num_examples,
            batch_size=self._batch_size,
            stream=context.stream("interactions"),
        )
        self._stream = context.stream("batch")
        self._forget()
        return self._count

    @property
    def _count(self) -> int:
        return -(-self._batches.num_batches // self._num_micro_batches)

    def _draw(self, index: int) -> list[DrawnBatch]:
        first = index * self._num_micro_batches
        last = min(first + self._num_micro_batches, self._batches.num_batches)
        return [self._draw_micro_batch(micro) for micro in range(first, last)]

    def _draw_micro_batch(self, index: int) -> DrawnBatch:
        chosen, interactions = self._batches[index], self._data.interactions
        return DrawnBatch(
            interactions.row_ids[chosen],
            interactions.indices[chosen],
            self._negatives[chosen],
            self._batches.size(index),
            self._stream.child(index),
        )


# From own users, local numbers (b,), their places in the batch (b,) and a stream to ids of items, (b, n); every worker
# asks at the same time.
FurtherItems = Callable[[Tensor, Tensor, RandomStream], Tensor]


class UserBatches(_PlannedAhead):
    """Batches of users, drawn uniformly for each batch anew, each with one of its items and a negative.

    The users of a batch are different ones, unless it is larger than there are users with interactions; then each is
    drawn from all of them. A user's items are equally likely, and so are the items that it has not interacted with.
    Draws are keyed by their place in the batch, so every worker finds those that fall on its users by itself.

    Args:
        data: the training data.
        batch_size: users of a batch, of all workers.
        num_batches: of an epoch; by default as many as it takes to go through all interactions.
        further: draws more items of each user.

    Attributes:
        num_examples: users of all batches of an epoch, of all workers.

    Raises:
        UserError: a user has interacted with every item.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        *,
        num_batches: int | None = None,
        further: FurtherItems | None = None,
    ) -> None:
        agree(lambda: check_negatives_exist(data.interactions, data.name_of_user), data.shard.world)
        super().__init__(data.shard, batch_size)
        self._data = data
        self._further = further
        self._batch_size = batch_size
        self._num_batches = -(-data.num_interactions // batch_size) if num_batches is None else num_batches
        self.num_examples = self._num_batches * batch_size
        self._negatives = NegativeSampler(data.interactions)
        self._numbers, self._rows, self._num_users = _numbered_users(data)

    def begin(self, context: PhaseContext) -> int:
        """Return how many batches the epoch has."""
        self._stream = context.stream("user_batch")
        self._forget()
        return self._num_batches

    @property
    def _count(self) -> int:
        return self._num_batches

    def _draw(self, index: int) -> list[DrawnBatch]:
        stream, interactions = self._stream.child(index), self._data.interactions
        places, rows = self._users(stream.child("users"))
        drawn = stream.child("items").integers(places, interactions.row_counts[rows])
        further = None if self._further is None else self._further(rows, places, stream.child("further"))
        negatives = self._negatives.draw(rows, places, stream.child("negatives"))
        positives = interactions.indices[interactions.indptr[rows] + drawn]
        return [DrawnBatch(rows, positives, negatives, self._batch_size, stream, further)]

    def _users(self, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """Return the places of a batch that hold an own user, ascending, and the users' rows."""
        places = torch.arange(self._batch_size, device=self._rows.device)
        distinct = self._batch_size <= self._num_users
        numbers = stream.permute(places, self._num_users) if distinct else stream.integers(places, self._num_users)
        if not self._numbers.numel():
            return places[:0], places[:0]
        at = torch.searchsorted(self._numbers, numbers).clamp_(max=self._numbers.numel() - 1)
        own = self._numbers[at] == numbers
        return places[own], self._rows[at[own]]


def _numbered_users(data: TrainingData) -> tuple[Tensor, Tensor, int]:
    """Return numbers of the own users with interactions, ascending, their rows, and how many users all workers have.

    The users with interactions of all workers are numbered by their ids, from 0 on.
    """
    shard, has_items = data.shard, data.interactions.row_counts > 0
    before = torch.zeros(shard.num_users + 1, dtype=torch.int64, device=has_items.device)
    before[shard.user_ids + 1] = has_items.to(torch.int64)
    before = all_reduce_sum_(before, shard.world, purpose=CONTROL).cumsum(0)
    rows = torch.nonzero(has_items).flatten()
    numbers, order = torch.sort(before[shard.user_ids[rows]])
    return numbers, rows[order], int(before[-1])


def take_step(loss: Tensor, optimizer: Optimizer, replicas: Sequence[nn.Parameter], world: World) -> None:
    """Take one step of an optimiser.

    Args:
        loss: this worker's share of what is minimised.
        optimizer: of which the gradients are forgotten first.
        replicas: those of its parameters that every worker has whole; their gradients are summed over the workers.
        world: the workers.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    sum_gradients(replicas, world, purpose=TRAFFIC)
    optimizer.step()


class RankingPhase(Phase):
    """One pass over the training interactions, with one Adam step per batch of ``propagate_every`` micro-batches.

    Args:
        data: the training data.
        tables: parameters that the phase trains, of which each worker has its own rows.
        replicas: parameters that the phase trains and every worker has whole.
        losses: from a batch to this worker's shares of its weighted terms, the means over its micro-batches; ``loss``,
            the one to minimise, is the sum.
        optimization: interactions per step and learning rate.
        in_layout: the model, if its ID tables stay in its layout while the phase lasts.
        extra: values to record at the end of the epoch.

    Raises:
        UserError: a user has interacted with every item.
    """

    name = "recommend"
    unit = "interactions"

    def __init__(
        self,
        data: TrainingData,
        tables: Sequence[nn.Parameter],
        replicas: Sequence[nn.Parameter],
        losses: Callable[[RankingBatch], dict[str, Tensor]],
        optimization: Optimization,
        *,
        in_layout: EmbeddingTables | None = None,
        extra: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self._batches = RankingBatches(data, optimization.batch_size, optimization.propagate_every)
        self.num_examples = self._batches.num_examples
        self._losses = losses
        self._in_layout = in_layout
        self._extra = extra
        self._replicas = list(replicas)
        self._world = data.shard.world
        self._adam = Adam([*tables, *replicas], lr=optimization.learning_rate, fused=True)
        self.optimizers = {"adam": self._adam}

    def begin(self, context: PhaseContext) -> int:
        """Draw the epoch's negatives and batches."""
        self._enter()
        return self._batches.begin(context)

    def _enter(self) -> None:
        if self._in_layout is not None:
            self._in_layout.enter_layout(self._adam)

    def settle(self) -> None:
        """Have the ID tables as own rows."""
        if self._in_layout is not None:
            self._in_layout.leave_layout(self._adam)

    def step(self, index: int) -> dict[str, Tensor]:
        """Take one Adam step."""
        self._enter()  # again, where they were saved since
        terms = self._losses(self._batches[index])
        total = torch.stack(list(terms.values())).sum()
        take_step(total, self._adam, self._replicas, self._world)
        return {name: term.detach() for name, term in terms.items()} | {"loss": total.detach()}

    def finish(self) -> dict[str, float]:
        """Have the ID tables as own rows, and return the extra values."""
        self.settle()
        return self._extra()
