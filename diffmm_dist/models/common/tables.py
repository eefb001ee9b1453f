"""Models with a table of ID embeddings for users and one for items, as they are or propagated over the real graph."""

import torch
from torch import Tensor

from diffmm_dist.graph.hetero import REAL, HeteroGraph, Kernel
from diffmm_dist.graph.layout import Layout, Reading, RowLayout
from diffmm_dist.graph.propagate import Rows, sum_of_layers
from diffmm_dist.graph.targets import Targets
from diffmm_dist.losses.regularization import squared_norm
from diffmm_dist.models.base import Recommender
from diffmm_dist.models.common.initialization import xavier_table
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import Shard


class EmbeddingTables(Recommender):
    """Xavier-uniform ID embeddings, of which each worker has its own rows.

    Args:
        shard: what this worker owns.
        seed: of the initial values.
        embedding_dim: d.

    Attributes:
        shard: what this worker owns.
        user_embedding: (own users, d).
        item_embedding: (own items, d).
    """

    def __init__(self, shard: Shard, *, seed: int, embedding_dim: int) -> None:
        super().__init__()
        self.shard = shard
        stream = RandomStream.of(seed, "init")
        self.user_embedding = xavier_table(
            shard.num_users, embedding_dim, stream.child("user_embedding"), ids=shard.user_ids
        )
        self.item_embedding = xavier_table(
            shard.num_items, embedding_dim, stream.child("item_embedding"), ids=shard.own_item_ids
        )

    def row_owners(self) -> dict[str, Ownership]:
        """Return the owners of both tables."""
        return {"user_embedding": self.shard.users, "item_embedding": self.shard.items}

    def squared_norm(self) -> Tensor:
        """Return this worker's share of ||E_u||^2 + ||E_i||^2."""
        return squared_norm(self.user_embedding, self.item_embedding)


class PropagatedTables(EmbeddingTables):
    """Sum of the layers A^^l [E_u; E_i], l = 0 .. L.

    Args:
        shard: what this worker owns.
        graph: has the real relation.
        seed: of the initial values.
        embedding_dim: d.
        num_layers: L.
        layout: how tables propagate; by rows by default. The graph is that of the layout.
    """

    def __init__(
        self,
        shard: Shard,
        graph: HeteroGraph,
        *,
        seed: int,
        embedding_dim: int,
        num_layers: int,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(shard, seed=seed, embedding_dim=embedding_dim)
        self.graph = graph
        self.layout = layout or RowLayout(shard)
        self._num_layers = num_layers

    @property
    def kernel(self) -> Kernel:
        """The graph's kernel."""
        return self.graph.kernel

    @property
    def tables(self) -> Rows:
        """E_u and E_i."""
        return self.user_embedding, self.item_embedding

    def forward(self, *, reading: Reading | None = None) -> Rows:
        """Return the final embeddings of own users and of own items.

        Args:
            reading: what of them will be read, and how it gets here: those of its tables, of which other rows may be
                anything. All own rows by default.
        """
        (users,), (items,) = self.layout.enter([self.user_embedding], [self.item_embedding])
        reading = reading or self.layout.whole
        targets = Targets.of(self.graph.relations[REAL], reading.rows)
        final = sum_of_layers(self.graph, (users, items), num_layers=self._num_layers, targets=targets)
        (left,) = self.layout.leave([final], [reading])
        return reading.place(left)

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the final embeddings, without gradient."""
        return self.forward()
