"""Models with a table of ID embeddings for users and one for items, as they are or propagated over the real graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

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

    While a phase trains them they may be kept as the layout has tables, so that no step brings them there.

    Args:
        shard: what this worker owns.
        seed: of the initial values.
        embedding_dim: d.
        layout: how tables propagate; by rows by default.

    Attributes:
        shard: what this worker owns.
        layout: how tables propagate.
        user_embedding: (own users, d); what the layout makes of it between ``enter_layout`` and ``leave_layout``.
        item_embedding: (own items, d), likewise.
    """

    def __init__(self, shard: Shard, *, seed: int, embedding_dim: int, layout: Layout | None = None) -> None:
        super().__init__()
        self.shard = shard
        self.layout = layout or RowLayout(shard)
        self._in_layout = False
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

    def entered(self, more_items: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return E_u, E_i and further tables of own items (I, d) as the layout has them; every worker calls it."""
        if self._in_layout:
            _, more = self.layout.enter([], more_items)
            return self.user_embedding, self.item_embedding, more
        (users,), (items, *more) = self.layout.enter([self.user_embedding], [self.item_embedding, *more_items])
        return users, items, more

    def enter_layout(self, optimizer: Optimizer) -> None:
        """Keep the tables, and what an optimiser remembers of their values, as the layout has tables.

        Nothing changes where they are there already. Every worker calls it at the same time.
        """
        if not self._in_layout:
            self._move(optimizer, self.layout.take)
            self._in_layout = True

    def leave_layout(self, optimizer: Optimizer) -> None:
        """Have them as own rows again; their gradients are dropped."""
        if self._in_layout:
            self._move(optimizer, self.layout.give_back)
            self._in_layout = False

    def _move(self, optimizer: Optimizer, move: Callable[[Tensor, Tensor], Rows]) -> None:
        """Move values and, one after the other for the sake of memory, what Adam remembers of each."""
        tables = self.user_embedding, self.item_embedding
        remembered = [optimizer.state.get(table, {}) for table in tables]
        form = tables[0].shape
        names = [name for name, value in remembered[0].items() if isinstance(value, Tensor) and value.shape == form]
        for name in names:
            moved = move(remembered[0][name], remembered[1][name])
            for of_table, values in zip(remembered, moved, strict=True):
                of_table[name] = values
        for table, values in zip(tables, move(*tables), strict=True):
            table.grad = None  # it has the other form
            table.data = values


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
        super().__init__(shard, seed=seed, embedding_dim=embedding_dim, layout=layout)
        self.graph = graph
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
        users, items, _ = self.entered()
        reading = reading or self.layout.whole
        targets = Targets.of(self.graph.relations[REAL], reading.rows, reading.edges)
        final = sum_of_layers(self.graph, (users, items), num_layers=self._num_layers, targets=targets)
        (left,) = self.layout.leave([final], [reading])
        return reading.place(left)

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the final embeddings, without gradient."""
        return self.forward()
