"""The heterogeneous graph: relations of users and items, edges of any other types, and the DGL heterograph of them."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.graph.dgl_package import import_dgl
from diffmm_dist.graph.relation import Edges, Relation

REAL = "interacts"
Kernel = Literal["csr", "dgl"]
EdgeType = tuple[str, str, str]


class HeteroGraph:
    """Nodes and edges of any types: users, items and the relations between them, and whatever else is given.

    Node and edge types are data: a relation NAME brings the edge types (user, NAME, item) and (item, rev_NAME, user),
    and further edges come with theirs, such as (entity, knows, entity). There are as many nodes of a type as its edges
    reach.

    Args:
        relations: between users and items, by name: ``interacts`` and one per generated graph.
        further: edges of other types.
        kernel: what sums neighbours; they agree but for rounding.
    """

    def __init__(
        self,
        relations: Mapping[str, Relation],
        *,
        further: Mapping[EdgeType, Edges] | None = None,
        kernel: Kernel = "csr",
    ) -> None:
        self.relations = dict(relations)
        self.further = dict(further or {})
        self.kernel = kernel

    def with_relations(self, relations: Mapping[str, Relation]) -> "HeteroGraph":
        """Return a graph that has these relations too, replacing those of the same name."""
        return HeteroGraph({**self.relations, **relations}, further=self.further, kernel=self.kernel)

    def with_further(self, further: Mapping[EdgeType, Edges]) -> "HeteroGraph":
        """Return a graph that has these edges of other types too, replacing those of the same type."""
        return HeteroGraph(self.relations, further={**self.further, **further}, kernel=self.kernel)

    @cached_property
    def edges(self) -> dict[EdgeType, Edges]:
        """All edges by their type (type of their sources, name, type of their targets), with local numbers."""
        found: dict[EdgeType, Edges] = {}
        for name, relation in self.relations.items():
            found["user", name, "item"] = relation.to_items
            found["item", f"rev_{name}", "user"] = relation.to_users
        return {**found, **self.further}

    @cached_property
    def num_nodes(self) -> dict[str, int]:
        """Nodes of each type; of items own ones and the longest halo, since each relation numbers its own behind."""
        counts: dict[str, int] = {}
        for (source, _, target), edges in self.edges.items():
            for kind, count in ((source, edges.by_target.num_columns), (target, edges.by_target.num_rows)):
                counts[kind] = max(counts.get(kind, 0), count)
        return counts

    @cached_property
    def dgl_graph(self) -> Any:
        """All edges as one ``dgl.DGLGraph`` of these types; its nodes are this worker's own and their halo."""
        data = {kind: _csc(edges, self.num_nodes[kind[2]]) for kind, edges in self.edges.items()}
        return import_dgl().heterograph(data, num_nodes_dict=self.num_nodes)

    @cached_property
    def _dgl_relations(self) -> dict[int, tuple[Any, Tensor]]:
        """DGL's graph of every type of edges, and of its reverse, by the identity of our edges.

        Each with the weights in its own order of edges, which a reverse shares with what it is the reverse of.
        """
        dgl = import_dgl()
        graphs = {id(edges): (self.dgl_graph[kind], edges.weights[:, None]) for kind, edges in self.edges.items()}
        for kind, edges in self.edges.items():
            if id(edges.reversed) not in graphs:
                graphs[id(edges.reversed)] = dgl.reverse(self.dgl_graph[kind]), edges.weights[:, None]
        return graphs

    def neighbor_sum(self, edges: Edges, source_rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return, for each target, the weighted sum of its sources' rows (targets, d); no autograd.

        Local edges and local rows only: nothing is exchanged here.

        Args:
            edges: of one of the relations, in either direction.
            source_rows: (sources, d).
            weights: in the order of ``edges.by_target``, of edges as the relation has them; their own by default.
        """
        if self.kernel == "csr":
            return edges.neighbor_sum(source_rows, weights)
        graph, own_weights = self._dgl_relations[id(edges)]
        padding = graph.num_src_nodes() - source_rows.shape[0]
        width = source_rows.shape[1]
        columns = 1 if width == 1 else 0  # DGL's kernel cannot take rows of one column
        padded = F.pad(source_rows, (0, columns, 0, padding))
        summed: Tensor = import_dgl().ops.u_mul_e_sum(
            graph, padded, own_weights if weights is None else weights[:, None]
        )
        return summed[: edges.by_target.num_rows, :width]


def _csc(edges: Edges, num_targets: int) -> tuple[str, tuple[Tensor, Tensor, list[int]]]:
    """Return the edges in DGL's form, padded with targets that have none."""
    indptr = edges.by_target.indptr
    padding = indptr[-1:].expand(num_targets - edges.by_target.num_rows)
    return "csc", (torch.cat([indptr, padding]), edges.by_target.indices, [])
