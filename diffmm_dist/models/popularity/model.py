"""Popularity baseline (README.md)."""

import torch
from torch import Tensor

from diffmm_dist.data.training import TrainingData
from diffmm_dist.models.base import Recommender
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.ranges import Ownership


class Popularity(Recommender):
    """Scores an item by its number of training interactions: embeddings of width 1, all users alike, no phases.

    Args:
        data: the training data.
    """

    def __init__(self, data: TrainingData) -> None:
        super().__init__()
        self._shard = data.shard
        counts = all_reduce_sum(data.interactions.column_counts, data.shard.world).to(torch.float32)
        self.user_embedding: Tensor
        self.item_embedding: Tensor
        self.register_buffer("user_embedding", torch.ones(data.shard.users.own.size, 1, device=counts.device))
        self.register_buffer("item_embedding", counts[data.shard.own_item_ids, None])

    def row_owners(self) -> dict[str, Ownership]:
        """Return the owners of both tables."""
        return {"user_embedding": self._shard.users, "item_embedding": self._shard.items}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return ones and counts."""
        return self.user_embedding, self.item_embedding
