"""The heterogeneous user-item graph: named relations, and the DGL heterograph made of them."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.graph.relation import Edges, Relation

REAL = "interacts"
Kernel = Literal["csr", "dgl"]


def import_dgl(*, otherwise: str = "set graph.kernel=csr") -> Any:
    """Import DGL.

    Args:
        otherwise: what can be done without it.

    Raises:
        UserError: naming the pair of versions that works.
    """
    os.environ["DGLBACKEND"] = "pytorch"  # or DGL writes a configuration file into the home directory, and says so
    try:
        with quietly():
            import dgl
    except Exception as error:  # a mismatched build fails with anything from ImportError to OSError
        raise UserError(
            f"DGL cannot be imported ({one_line(error)}); install dgl==1.1.3 beside torch 2.11 to 2.13 on Python 3.10 "
            f"or 3.11, or {otherwise}"
        ) from error
    return dgl


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what a library writes to standard output and error, from C++ too, out of sight, and show it if it fails."""
    with tempfile.TemporaryFile() as kept, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        saved = _copies_of_streams()
        try:
            for number in saved:
                os.dup2(kept.fileno(), number)
            with redirect_stdout(None), redirect_stderr(None):
                yield
        except BaseException:
            kept.seek(0)
            with suppress(OSError, KeyError):
                os.write(saved[2], kept.read())
            raise
        finally:
            for number, descriptor in saved.items():
                os.dup2(descriptor, number)
                os.close(descriptor)


def _copies_of_streams() -> dict[int, int]:
    """Return copies of the descriptors of standard output and error, of those that are open."""
    copies = {}
    for number in (1, 2):
        with suppress(OSError):
            copies[number] = os.dup(number)
    return copies


class HeteroGraph:
    """Users, items and the relations between them: ``interacts`` and one per generated graph.

    Args:
        relations: by name.
        kernel: what sums neighbours; they agree but for rounding.
    """

    def __init__(self, relations: Mapping[str, Relation], *, kernel: Kernel = "csr") -> None:
        self.relations = dict(relations)
        self.kernel = kernel

    def with_relations(self, relations: Mapping[str, Relation]) -> "HeteroGraph":
        """Return a graph that has these relations too, replacing those of the same name."""
        return HeteroGraph({**self.relations, **relations}, kernel=self.kernel)

    @cached_property
    def dgl_graph(self) -> Any:
        """All relations as one ``dgl.DGLGraph`` with edge types (user, NAME, item) and (item, rev_NAME, user).

        Its nodes are this worker's own users, its own items and their halo.
        """
        dgl = import_dgl()
        counts = {"user": self.relations[REAL].user_scale.shape[0], "item": self._num_item_nodes}
        data = {}
        for name, relation in self.relations.items():
            data["user", name, "item"] = _csc(relation.to_items, counts["item"])
            data["item", f"rev_{name}", "user"] = _csc(relation.to_users, counts["user"])
        return dgl.heterograph(data, num_nodes_dict=counts)

    @property
    def _num_item_nodes(self) -> int:
        """Own items and the longest halo of any relation: each relation numbers its own halo behind the own items."""
        return max(relation.halo.num_local for relation in self.relations.values())

    @cached_property
    def _dgl_relations(self) -> dict[int, tuple[Any, Tensor]]:
        """DGL's graph of each direction of each relation, and of its reverse, by the identity of our edges.

        Each with the weights in its own order of edges, which a reverse shares with what it is the reverse of.
        """
        dgl = import_dgl()
        graphs = {}
        for name, relation in self.relations.items():
            for edges, edge_type in ((relation.to_items, name), (relation.to_users, f"rev_{name}")):
                weights = edges.weights[:, None]
                graphs[id(edges)] = self.dgl_graph[edge_type], weights
                graphs.setdefault(id(edges.reversed), (dgl.reverse(self.dgl_graph[edge_type]), weights))
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
            return edges.by_target.weighted_matmul(edges.weights if weights is None else weights, source_rows)
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
