"""The heterogeneous user-item graph: named relations, and the DGL heterograph made of them."""

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.graph.relation import Edges, Relation

REAL = "interacts"
Kernel = Literal["csr", "dgl"]


def import_dgl() -> Any:
    """Import DGL.

    Raises:
        UserError: naming the pair of versions that works.
    """
    os.environ.setdefault("DGLBACKEND", "pytorch")  # or DGL writes a configuration file into the home directory
    try:
        import dgl
    except Exception as error:  # a mismatched build fails with anything from ImportError to OSError
        raise UserError(
            f"DGL cannot be imported ({one_line(error)}); install dgl==1.1.3 beside torch 2.11 to 2.13 on Python 3.10 "
            "or 3.11, or set graph.kernel=csr"
        ) from error
    return dgl


class HeteroGraph:
    """Users, items and the relations between them: ``interacts`` and one per generated graph.

    Args:
        relations: by name.
        kernel: what sums neighbours; both give the same bits.
    """

    def __init__(self, relations: Mapping[str, Relation], *, kernel: Kernel = "csr") -> None:
        self.relations = dict(relations)
        self.kernel = kernel

    def with_relations(self, relations: Mapping[str, Relation]) -> "HeteroGraph":
        """Return a graph that has these relations too, replacing those of the same name."""
        return HeteroGraph({**self.relations, **relations}, kernel=self.kernel)

    @cached_property
    def dgl_graph(self) -> Any:
        """All relations as one ``dgl.DGLGraph`` with edge types (user, NAME, item) and (item, rev_NAME, user)."""
        dgl = import_dgl()
        data = {}
        for name, relation in self.relations.items():
            data["user", name, "item"] = _csc(relation.to_items)
            data["item", f"rev_{name}", "user"] = _csc(relation.to_users)
        real = self.relations[REAL]
        counts = {"user": real.user_scale.shape[0], "item": real.item_scale.shape[0]}
        return dgl.heterograph(data, num_nodes_dict=counts)

    @cached_property
    def _dgl_relations(self) -> dict[int, Any]:
        """DGL's graph of each direction of each relation, and of its reverse, by the identity of our edges."""
        dgl = import_dgl()
        graphs = {}
        for name, relation in self.relations.items():
            for edges, edge_type in ((relation.to_items, name), (relation.to_users, f"rev_{name}")):
                graphs[id(edges)] = self.dgl_graph[edge_type]
                graphs.setdefault(id(edges.reversed), dgl.reverse(self.dgl_graph[edge_type]))
        return graphs

    def neighbor_sum(self, edges: Edges, source_rows: Tensor) -> Tensor:
        """Return, for each target, the sum of its sources' rows (targets, d), by the graph's kernel; no autograd."""
        if self.kernel == "csr":
            return edges.by_target.matmul(source_rows)
        summed: Tensor = import_dgl().ops.copy_u_sum(self._dgl_relations[id(edges)], source_rows)
        return summed


def _csc(edges: Edges) -> tuple[str, tuple[Tensor, Tensor, list[int]]]:
    return "csc", (edges.by_target.indptr, edges.by_target.indices, [])
