"""The phase that goes through the interactions: negatives, a loss of the model's choice, one Adam step per batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim import Adam

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.data.sampling import check_negatives_exist, sample_negatives
from diffmm_dist.data.training import TrainingData
from diffmm_dist.losses.contrastive import BatchNodes
from diffmm_dist.losses.ranking import bpr_loss
from diffmm_dist.models.base import Optimization, Phase, PhaseContext
from diffmm_dist.parallel.collectives import agree
from diffmm_dist.parallel.halo import Halo, extended, localize
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.replicas import sum_gradients
from diffmm_dist.parallel.shard import Shard

TRAFFIC = "ranking"


@dataclass(frozen=True, eq=False)
class RankingBatch:
    """The interactions of a global batch whose users this worker owns.

    Attributes:
        shard: what this worker owns.
        user_rows: own users, local numbers, int64 (b,).
        item_halo: how the items of ``pos_items`` and ``neg_items`` are reached.
        pos_items: an item that each user has interacted with, local numbers, int64 (b,).
        neg_items: an item that each has not, local numbers, int64 (b,).
        size: interactions of the batch, of all workers.
        stream: random stream of the batch.
    """

    shard: Shard
    user_rows: Tensor
    item_halo: Halo
    pos_items: Tensor
    neg_items: Tensor
    size: int
    stream: RandomStream

    @classmethod
    def of(
        cls,
        shard: Shard,
        user_rows: Tensor,
        pos_ids: Tensor,
        neg_ids: Tensor,
        *,
        size: int,
        stream: RandomStream | None = None,
    ) -> "RankingBatch":
        """Plan how this batch's items, int64 ids (b,) each, are reached; every worker calls it at the same time."""
        rows = shard.item_rows[torch.stack([pos_ids, neg_ids])]
        halo, (pos_items, neg_items) = localize(rows, shard.items, shard.world, purpose=TRAFFIC)
        return cls(shard, user_rows, halo, pos_items, neg_items, size, stream or RandomStream(0))

    def bpr(self, embeddings: tuple[Tensor, Tensor], *, divisor: int) -> Tensor:
        """Return this worker's share of the BPR loss from the final embeddings of own users and own items."""
        user_emb_UD, item_emb_LD = embeddings[0], extended(embeddings[1], self.item_halo)
        return bpr_loss(
            user_emb_UD.index_select(0, self.user_rows),
            item_emb_LD.index_select(0, self.pos_items),
            item_emb_LD.index_select(0, self.neg_items),
            divisor=divisor,
        )

    @cached_property
    def read_rows(self) -> tuple[Tensor, Tensor]:
        """Own users and own items whose final embeddings any worker reads, local numbers, ascending, int64."""
        items = torch.cat([self.pos_items, self.neg_items])
        own = items[items < self.item_halo.num_inner]
        return torch.unique(self.user_rows), torch.unique(torch.cat([own, self.item_halo.send_rows]))

    @cached_property
    def nodes(self) -> tuple[BatchNodes, BatchNodes]:
        """The batch's users and its positive items, at their owners."""
        shard = self.shard
        users = torch.bincount(self.user_rows, minlength=shard.users.own.size)
        items = self.item_halo.fold(torch.bincount(self.pos_items, minlength=self.item_halo.num_local))
        return (
            BatchNodes.counted(users, shard.users, shard.world, batch_size=self.size),
            BatchNodes.counted(items, shard.items, shard.world, batch_size=self.size),
        )

    def sampled_nodes(self, max_nodes: int) -> tuple[BatchNodes, BatchNodes]:
        """Return ``nodes``, at most ``max_nodes`` of each side on average."""
        (users, items), shard = self.nodes, self.shard
        user_ids, item_ids = shard.user_ids[users.nodes], shard.own_item_ids[items.nodes]
        return (
            users.sampled(user_ids, max_nodes=max_nodes, stream=self.stream.child("users"), world=shard.world),
            items.sampled(item_ids, max_nodes=max_nodes, stream=self.stream.child("items"), world=shard.world),
        )


class RankingPhase(Phase):
    """One pass over the training interactions in shuffled batches, with negatives drawn once per epoch.

    Args:
        data: the training data.
        tables: parameters that the phase trains, of which each worker has its own rows.
        replicas: parameters that the phase trains and every worker has whole.
        losses: from a batch to this worker's shares of its weighted terms; ``loss``, the one to minimise, is the sum.
        optimization: interactions per step and learning rate.
        extra: values to record at the end of the epoch.

    Raises:
        UserError: a user has interacted with every item.
    """

    name = "recommend"
    unit = "interactions"
    optimizer: Adam

    def __init__(
        self,
        data: TrainingData,
        tables: Sequence[nn.Parameter],
        replicas: Sequence[nn.Parameter],
        losses: Callable[[RankingBatch], dict[str, Tensor]],
        optimization: Optimization,
        *,
        extra: Callable[[], dict[str, float]] = dict,
    ) -> None:
        agree(lambda: check_negatives_exist(data.interactions, data.name_of_user), data.shard.world)
        self.num_examples = data.num_interactions
        self._data = data
        self._losses = losses
        self._extra = extra
        self._batch_size = optimization.batch_size
        self._replicas = list(replicas)
        self.optimizer = Adam([*tables, *replicas], lr=optimization.learning_rate, fused=True)

    def begin(self, context: PhaseContext) -> int:
        """Draw the epoch's negatives and batches."""
        interactions, ids = self._data.interactions, self._data.interaction_ids
        self._negatives = sample_negatives(interactions, interactions.row_ids, ids, context.stream("negatives"))
        self._batches = EpochBatches(
            ids,
            total=self._data.num_interactions,
            batch_size=self._batch_size,
            stream=context.stream("interactions"),
        )
        self._stream = context.stream("batch")
        return self._batches.num_batches

    def step(self, index: int) -> dict[str, Tensor]:
        """Take one Adam step."""
        chosen = self._batches[index]
        interactions, world = self._data.interactions, self._data.shard.world
        batch = RankingBatch.of(
            self._data.shard,
            interactions.row_ids[chosen],
            interactions.indices[chosen],
            self._negatives[chosen],
            size=self._batches.size(index),
            stream=self._stream.child(index),
        )
        terms = self._losses(batch)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        sum_gradients(self._replicas, world, purpose=TRAFFIC)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()} | {"loss": total.detach()}

    def finish(self) -> dict[str, float]:
        """Return the extra values."""
        return self._extra()
