"""Popularity baseline (README.md)."""

import torch
from torch import Tensor

from diffmm_dist.data.training import TrainingData
from diffmm_dist.models.base import Recommender


class Popularity(Recommender):
    """Scores an item by its number of training interactions: embeddings of width 1, all users alike, no phases.

    Args:
        data: the training data.
    """

    def __init__(self, data: TrainingData) -> None:
        super().__init__()
        counts = data.interactions.column_counts.to(torch.float32)
        self.user_embedding: Tensor
        self.item_embedding: Tensor
        self.register_buffer("user_embedding", torch.ones(data.num_users, 1, device=counts.device))
        self.register_buffer("item_embedding", counts[:, None])

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return ones and counts."""
        return self.user_embedding, self.item_embedding
