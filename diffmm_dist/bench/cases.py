"""Single operations, timed against their alternatives in the same process."""

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from diffmm_dist import storage
from diffmm_dist.bench.machine import machine
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.graph.hetero import REAL, HeteroGraph
from diffmm_dist.graph.propagate import propagate
from diffmm_dist.graph.relation import Edges, Relation
from diffmm_dist.train.worker import keep_freed_memory

_REPEATS = 15


def bench_propagate(dataset_uri: str, width: int, out: str) -> None:
    """Time neighbour sums by torch's CSR product and both kernels, and a whole propagation; write a JSON file.

    The propagation is timed with the allocator's defaults first, then with freed memory kept, as training does.

    Args:
        dataset_uri: its training interactions are the graph.
        width: columns of the rows.
        out: the JSON file.
    """
    dataset = Dataset.open(dataset_uri)
    relation = Relation.normalized(dataset.interactions("train"))
    graphs = {kernel: HeteroGraph({REAL: relation}, kernel=kernel) for kernel in ("dgl", "csr")}
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
            "command": " ".join(["python", *sys.argv]),
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
    graphs: Mapping[str, HeteroGraph], edges: Edges, rows: torch.Tensor
) -> dict[str, Callable[[], object]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR tensors beta
        pattern = edges.by_target
        shape = (pattern.num_rows, pattern.num_columns)
        ones = torch.ones(pattern.num_entries)
        matrix = torch.sparse_csr_tensor(pattern.indptr, pattern.indices, ones, size=shape, check_invariants=False)
    cases: dict[str, Callable[[], object]] = {"torch CSR product": lambda: matrix @ rows}
    for name, kernel in (("DGL copy_u_sum", "dgl"), ("embedding_bag", "csr")):
        cases[name] = lambda graph=graphs[kernel]: graph.neighbor_sum(edges, rows)  # type: ignore[misc]
    return cases


def milliseconds(cases: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median time of each case; they take turns, so a busy moment hits them all."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(_REPEATS + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if repeat:  # the first builds what a kernel keeps
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}
