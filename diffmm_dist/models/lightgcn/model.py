"""LightGCN-style baseline (equations in README.md)."""

import torch
from torch import Tensor

from diffmm_dist.data.training import TrainingData
from diffmm_dist.graph.hetero import HeteroGraph, Kernel
from diffmm_dist.graph.propagate import sum_of_layers
from diffmm_dist.models.common.tables import EmbeddingTables


class LightGCN(EmbeddingTables):
    """Sum of the layers A^^l [E_u; E_i], l = 0 .. L.

    Args:
        data: the training data.
        graph: has the real relation.
        seed: of the initial values.
        embedding_dim: d.
        num_layers: L.
    """

    def __init__(
        self, data: TrainingData, graph: HeteroGraph, *, seed: int, embedding_dim: int, num_layers: int
    ) -> None:
        super().__init__(data.shard, seed=seed, embedding_dim=embedding_dim)
        self.graph = graph
        self._num_layers = num_layers

    @property
    def kernel(self) -> Kernel:
        """The graph's kernel."""
        return self.graph.kernel

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the final embeddings of own users and own items."""
        return sum_of_layers(self.graph, (self.user_embedding, self.item_embedding), num_layers=self._num_layers)

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the final embeddings, without gradient."""
        return self.forward()
