"""The phase that goes through the interactions: negatives, a loss of the model's choice, one Adam step per batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.data.sampling import check_negatives_exist, sample_negatives
from diffmm_dist.data.training import TrainingData
from diffmm_dist.losses.ranking import bpr_loss
from diffmm_dist.models.base import Optimization, Phase, PhaseContext


@dataclass(frozen=True)
class RankingBatch:
    """Users, an item that each has interacted with, and one that each has not; int64 (B,) each."""

    user_ids: Tensor
    pos_item_ids: Tensor
    neg_item_ids: Tensor

    def bpr(self, embeddings: tuple[Tensor, Tensor], *, divisor: int) -> Tensor:
        """Return the BPR loss of the batch from the final embeddings of all users (U, d) and items (I, d)."""
        user_emb_UD, item_emb_ID = embeddings
        return bpr_loss(
            user_emb_UD.index_select(0, self.user_ids),
            item_emb_ID.index_select(0, self.pos_item_ids),
            item_emb_ID.index_select(0, self.neg_item_ids),
            divisor=divisor,
        )


class RankingPhase(Phase):
    """One pass over the training interactions in shuffled batches, with negatives drawn once per epoch.

    Args:
        data: the training data.
        parameters: what the phase trains.
        losses: from a batch to its weighted terms; ``loss``, the one to minimise, is their sum.
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
        parameters: list[nn.Parameter],
        losses: Callable[[RankingBatch], dict[str, Tensor]],
        optimization: Optimization,
        *,
        extra: Callable[[], dict[str, float]] = dict,
    ) -> None:
        check_negatives_exist(data.interactions, first_user=data.users.start)
        self.num_examples = data.num_interactions
        self._data = data
        self._losses = losses
        self._extra = extra
        self._batch_size = optimization.batch_size
        self.optimizer = Adam(parameters, lr=optimization.learning_rate, fused=True)

    def begin(self, context: PhaseContext) -> int:
        """Draw the epoch's negatives and batches."""
        interactions = self._data.interactions
        rows = interactions.row_ids
        ids = torch.arange(rows.numel(), device=rows.device) + self._data.first_interaction
        self._negatives = sample_negatives(interactions, rows, ids, context.stream("negatives"))
        self._batches = EpochBatches(
            ids,
            total=self._data.num_interactions,
            batch_size=self._batch_size,
            stream=context.stream("interactions"),
        )
        return self._batches.num_batches

    def step(self, index: int) -> dict[str, Tensor]:
        """Take one Adam step."""
        chosen = self._batches[index]
        batch = RankingBatch(
            self._data.interactions.row_ids[chosen], self._data.interactions.indices[chosen], self._negatives[chosen]
        )
        terms = self._losses(batch)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()} | {"loss": total.detach()}

    def finish(self) -> dict[str, float]:
        """Return the extra values."""
        return self._extra()
