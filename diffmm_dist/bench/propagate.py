"""A propagation over the whole graph, forward and backward, and of the tables of two modalities at once.

Symbols: E edges, N = users + items, d columns. FLOP: 2 (2 E + N) d, and as many backward. Bytes: every edge reads its
index, its weight and a row in either direction, and the rows are read and written once; the matrix of coordinates has
two indices and a weight for every entry.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffmm_dist.bench.operations import FLOAT, Case, Operation, Variant
from diffmm_dist.bench.problems import normal_rows, power_law_rows
from diffmm_dist.errors import UserError
from diffmm_dist.graph.dgl_package import import_dgl
from diffmm_dist.graph.hetero import REAL, HeteroGraph, Kernel
from diffmm_dist.graph.propagate import propagate
from diffmm_dist.graph.relation import Relation

_INDEX = 8  # bytes


@dataclass(frozen=True)
class PropagateSize:
    """Users, items, edges to draw (a few come twice and count once), and d."""

    users: int
    items: int
    draws: int
    dim: int = 64


PRESETS = {
    "tiktok": PropagateSize(users=9308, items=6710, draws=60_000),
    "large": PropagateSize(users=200_000, items=50_000, draws=4_000_000),
}


class Problem:
    """A graph whose degrees follow a power law, and random rows."""

    def __init__(self, size: PropagateSize, device: torch.device) -> None:
        self.relation = Relation.normalized(power_law_rows(size.users, size.items, size.draws, device))
        self._users = normal_rows("users", size.users, size.dim, device).requires_grad_()
        self._items = normal_rows("items", size.items, size.dim, device).requires_grad_()

    def ours(self, graph: HeteroGraph) -> tuple[Tensor, ...]:
        """Return the gradients of the rows under the sum of the propagated ones."""
        users, items = propagate(graph, REAL, self._users, self._items)
        return torch.autograd.grad(users.sum() + items.sum(), (self._users, self._items))

    def by_matrix(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Return the same through one sparse matrix."""
        rows = torch.sparse.mm(matrix, torch.cat([self._users, self._items]))
        return torch.autograd.grad(rows.sum(), (self._users, self._items))

    def two_tables(self, graph: HeteroGraph, *, at_once: bool) -> tuple[Tensor, ...]:
        """Return the gradients of two pairs of tables, propagated one after the other or with columns side by side."""
        pairs = ((self._users, self._items), (self._users * 2, self._items * 2))
        if at_once:
            users, items = propagate(graph, REAL, *(torch.cat(tables, dim=1) for tables in zip(*pairs, strict=True)))
            width = self._users.shape[1]
            out = [*users.split(width, dim=1), *items.split(width, dim=1)]
        else:
            out = [rows for pair in pairs for rows in propagate(graph, REAL, *pair)]
        return torch.autograd.grad(sum(rows.sin().sum() for rows in out), (self._users, self._items))

    def matrix(self) -> Tensor:
        """Return A^ as torch's matrix of coordinates, (N, N)."""
        pairs, relation = self.relation.pairs, self.relation
        users, items = pairs.row_ids, pairs.indices + pairs.num_rows
        scale_N = torch.cat([relation.user_scale, relation.item_scale])
        loops = torch.arange(scale_N.numel(), device=scale_N.device)
        rows, columns = torch.cat([users, items, loops]), torch.cat([items, users, loops])
        weights = scale_N[rows] * scale_N[columns]
        entries = torch.stack([rows, columns])
        return torch.sparse_coo_tensor(entries, weights, (loops.numel(), loops.numel()), check_invariants=False)


def operations(size: PropagateSize, device: torch.device) -> Iterator[Operation]:
    """Yield the propagation, and that of two modalities with each kernel."""
    problem = Problem(size, device)
    edges, nodes = problem.relation.pairs.num_entries, size.users + size.items
    flop = 4 * (2 * edges + nodes) * size.dim
    rows = 2 * nodes * size.dim * FLOAT
    num_bytes = 2 * (2 * edges * (_INDEX + FLOAT + size.dim * FLOAT) + rows)
    kernels: list[Kernel] = ["csr", *dgl_kernel(device)]
    graphs = {kernel: HeteroGraph({REAL: problem.relation}, kernel=kernel) for kernel in kernels}
    variants: dict[str, Variant] = {
        kernel: Variant(partial(problem.ours, graph), flop, num_bytes) for kernel, graph in graphs.items()
    }
    entries = 2 * edges + nodes
    matrix_bytes = 2 * (entries * (2 * _INDEX + FLOAT + size.dim * FLOAT) + rows)
    variants["torch COO"] = Variant(partial(problem.by_matrix, problem.matrix()), flop, matrix_bytes)
    yield Operation("propagation", variants, lambda: {"edges": edges})
    for kernel, graph in graphs.items():
        twice = {
            name: Variant(partial(problem.two_tables, graph, at_once=at_once), 2 * flop, 2 * num_bytes)
            for name, at_once in (("one after the other", False), ("side by side", True))
        }
        yield Operation(f"two modalities, {kernel}", twice)


def dgl_kernel(device: torch.device) -> list[Kernel]:
    """Return DGL's kernel where it can run."""
    try:
        import_dgl()
    except UserError:
        return []
    return ["dgl"] if device.type == "cpu" else []


CASE = Case("propagate", PRESETS, operations)
