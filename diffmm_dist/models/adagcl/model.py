"""AdaGCL's network (equations and deviations in README.md).

Symbols: E_u, E_i ID embeddings; A^ the real graph with self loops; V1 the pruned view, V2 the gated one.
"""

from typing import Literal

from torch import Tensor

from diffmm_dist.graph.entries import propagate_entries
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import Rows
from diffmm_dist.models.adagcl.gates import GateGenerator, HardConcrete
from diffmm_dist.models.adagcl.pruning import PruningGenerator
from diffmm_dist.models.common.tables import PropagatedTables
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import Shard

Mode = Literal["corrected", "reference"]


class AdaGCL(PropagatedTables):
    """Sum of the layers A^^l [E_u; E_i], with two generators of views of the graph beside it.

    Args:
        shard: what this worker owns.
        graph: has the real relation.
        seed: of the initial values.
        embedding_dim: d.
        num_layers: L.
        gates: distribution of the second generator's gates.
        mode: ``reference`` trains the gates on the initial tables, as released.

    Attributes:
        pruning: the first generator.
        gating: the second generator.
    """

    def __init__(
        self,
        shard: Shard,
        graph: HeteroGraph,
        *,
        seed: int,
        embedding_dim: int,
        num_layers: int,
        gates: HardConcrete,
        mode: Mode = "corrected",
    ) -> None:
        super().__init__(shard, graph, seed=seed, embedding_dim=embedding_dim, num_layers=num_layers)
        self.mode = mode
        self.pruning = PruningGenerator(shard, seed=seed, embedding_dim=embedding_dim, num_layers=num_layers)
        self.gating = GateGenerator(seed=seed, embedding_dim=embedding_dim, num_layers=num_layers, distribution=gates)
        if mode == "reference":
            self.register_buffer("initial_users", self.user_embedding.detach().clone())
            self.register_buffer("initial_items", self.item_embedding.detach().clone())

    def pruned_view(self, values_V: Tensor) -> Rows:
        """Return sum_l V1^l [E_u; E_i] of the first view's values."""
        users, items = self.tables
        for _ in range(self._num_layers):
            layer = propagate_entries(self.graph, self.graph.relations[REAL], values_V, (users, items))
            users, items = self.user_embedding + layer[0], self.item_embedding + layer[1]
        return users, items

    def gated_view(self) -> Rows:
        """Return the sum of the tables and of what each gated layer makes of the one before."""
        return self.gating.view(self.graph, self.tables).rows

    def gate_input(self) -> Rows:
        """Return what the gates are trained on: the tables as they are, or in ``reference`` as they were at first."""
        if self.mode == "reference":
            users, items = self.get_buffer("initial_users"), self.get_buffer("initial_items")
        else:
            users, items = self.user_embedding.detach(), self.item_embedding.detach()
        return users, items

    def row_owners(self) -> dict[str, Ownership]:
        """Return the owners of all tables."""
        users, items = self.shard.users, self.shard.items
        owners = super().row_owners() | {"pruning.user_embedding": users, "pruning.item_embedding": items}
        if self.mode == "reference":
            owners |= {"initial_users": users, "initial_items": items}
        return owners
