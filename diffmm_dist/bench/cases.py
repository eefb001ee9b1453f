"""Single operations, timed against their alternatives in the same process."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import torch

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.propagate import dgl_kernel
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.graph.hetero import REAL, HeteroGraph, Kernel
from diffmm_dist.graph.propagate import propagate
from diffmm_dist.graph.relation import Edges, Relation
from diffmm_dist.monitoring.timing import take_turns
from diffmm_dist.training.allocator import keep_freed_memory

_REPEATS = 15


def bench_propagate(dataset_uri: str, width: int, out: str) -> None:
    """Time neighbour sums by torch's CSR product and our kernels, and a whole propagation; write a JSON file.

    The propagation is timed with the allocator's defaults first, then with freed memory kept, as training does.

    Args:
        dataset_uri: its training interactions are the graph.
        width: columns of the rows.
        out: the JSON file.
    """
    dataset = Dataset.open(dataset_uri)
    relation = Relation.normalized(dataset.interactions("train"))
    kernels: list[Kernel] = [*dgl_kernel(torch.device("cpu")), "csr"]
    graphs = {kernel: HeteroGraph({REAL: relation}, kernel=kernel) for kernel in kernels}
    users, items = torch.ones(dataset.num_users, width), torch.ones(dataset.num_items, width)

    def whole() -> object:
        return propagate(graphs["csr"], REAL, users, items)

    default_allocator = milliseconds({"propagate": whole})["propagate"]
    keep_freed_memory()
    sums = {
        direction: milliseconds(_neighbor_sums(graphs, edges, rows))
        for direction, edges, rows in (
            ("users from items", relation.to_users, items),
            ("items from users", relation.to_items, users),
        )
    }
    storage.write_json(
        out,
        {
            "command": command(),
            "machine": machine(),
            "graph": {
                "users": dataset.num_users,
                "items": dataset.num_items,
                "edges": relation.to_users.num_edges,
                "width": width,
            },
            "neighbor_sum_ms": sums,
            "propagate_ms": {
                "default allocator": default_allocator,
                "freed memory kept": milliseconds({"propagate": whole})["propagate"],
            },
        },
    )


def _neighbor_sums(
    graphs: Mapping[Kernel, HeteroGraph], edges: Edges, rows: torch.Tensor
) -> dict[str, Callable[[], object]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR tensors beta
        pattern = edges.by_target
        shape = (pattern.num_rows, pattern.num_columns)
        values = edges.weights
        matrix = torch.sparse_csr_tensor(pattern.indptr, pattern.indices, values, size=shape, check_invariants=False)
    cases: dict[str, Callable[[], object]] = {"torch CSR product": lambda: matrix @ rows}
    if "dgl" in graphs:
        cases["DGL u_mul_e_sum"] = partial(graphs["dgl"].neighbor_sum, edges, rows)
    cases["embedding_bag"] = partial(graphs["csr"].neighbor_sum, edges, rows)
    return cases


def milliseconds(cases: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median time of each case."""
    return {name: 1e3 * median(times) for name, times in take_turns(cases, repeats=_REPEATS).items()}
