"""Propagation over a relation: the one function through which all sparse products go, and the choice of its kernel."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.errors import UserError
from diffmm_dist.graph.hetero import REAL, HeteroGraph, Kernel, import_dgl
from diffmm_dist.graph.relation import Edges, Relation
from diffmm_dist.monitoring.timing import take_turns
from diffmm_dist.parallel.collectives import any_worker


def propagate(graph: HeteroGraph, relation: str, user_rows: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return A^ [user_rows; item_rows] of one relation, with autograd.

    Several modalities that share the relation go through at once with their columns side by side.

    Every worker calls it at the same time, with the rows that it owns.

    Args:
        graph: the graph.
        relation: name of the relation.
        user_rows: float32 (own users, d).
        item_rows: float32 (own items, d).

    Returns:
        The user rows and the item rows of the product, of the same shapes.
    """
    product: tuple[Tensor, Tensor] = _Propagate.apply(user_rows, item_rows, graph, graph.relations[relation])  # type: ignore[no-untyped-call]
    return product


def sum_of_layers(graph: HeteroGraph, rows: tuple[Tensor, Tensor], *, num_layers: int) -> tuple[Tensor, Tensor]:
    """Return sum_{l=0..L} A^^l [user rows; item rows] over the real graph, (U, d) and (I, d)."""
    users, items = layer = rows
    for _ in range(num_layers):
        layer = propagate(graph, REAL, *layer)
        users, items = users + layer[0], items + layer[1]
    return users, items


class _Propagate(torch.autograd.Function):
    """The backward pass is the same product with all edges reversed: A^ transposed."""

    @staticmethod
    def forward(
        ctx: Any, user_rows: Tensor, item_rows: Tensor, graph: HeteroGraph, relation: Relation
    ) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.relation = graph, relation
        return _product(graph, relation, relation.to_users, relation.to_items, user_rows, item_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        relation: Relation = ctx.relation
        to_users, to_items = relation.to_items.reversed, relation.to_users.reversed
        users, items = _product(ctx.graph, relation, to_users, to_items, *gradients)
        return users, items, None, None


def _product(
    graph: HeteroGraph, relation: Relation, to_users: Edges, to_items: Edges, user_rows: Tensor, item_rows: Tensor
) -> tuple[Tensor, Tensor]:
    # Each exchange is under way while the other direction is summed.
    halo_rows = relation.halo.start_extend(item_rows)
    own_sums = relation.halo.start_fold(graph.neighbor_sum(to_items, user_rows))
    users = graph.neighbor_sum(to_users, halo_rows())
    users.addcmul_(relation.user_loop, user_rows)
    items = own_sums()
    items.addcmul_(relation.item_loop, item_rows)
    return users, items


@dataclass(frozen=True)
class KernelChoice:
    """A kernel and why it was chosen.

    Attributes:
        kernel: the kernel.
        reason: for the log.
    """

    kernel: Kernel
    reason: str


def choose_kernel(requested: str, real: Relation, *, width: int) -> KernelChoice:
    """Return the kernel to use; ``auto`` times both on this graph, forward and backward.

    Args:
        requested: ``csr``, ``dgl`` or ``auto``.
        real: the real graph; every worker calls it at the same time.
        width: columns of the rows to propagate.

    Raises:
        UserError: ``dgl`` is asked for and cannot run here.
    """
    device = real.user_scale.device
    if requested == "csr":
        return KernelChoice("csr", "as configured")
    if device.type != "cpu":
        if requested == "dgl":
            raise UserError(f"graph.kernel=dgl computes on the CPU only, and this worker uses {device}; set it to csr")
        return KernelChoice("csr", f"DGL's package computes on the CPU only, and this worker uses {device}")
    missing = _missing_dgl()
    if any_worker(missing is not None, real.shard.world):  # all choose alike: timing the kernels needs all of them
        missing = missing or UserError("another worker cannot import DGL; install it there, or set graph.kernel=csr")
        if requested == "dgl":
            raise missing
        return KernelChoice("csr", str(missing))
    if requested == "dgl":
        return KernelChoice("dgl", "as configured")
    seconds = _time_kernels(real, width)
    winner = min(seconds, key=lambda kernel: seconds[kernel])
    timings = ", ".join(f"{kernel} {1e3 * value:.1f} ms" for kernel, value in seconds.items())
    return KernelChoice(winner, f"fastest on this graph: {timings}, forward and backward")


def _missing_dgl() -> UserError | None:
    """Return why DGL cannot be imported here, or None if it can."""
    try:
        import_dgl()
    except UserError as error:
        return error
    return None


def _time_kernels(real: Relation, width: int) -> dict[Kernel, float]:
    """Return each kernel's shortest time in seconds, forward and backward."""
    user_rows = torch.ones(real.user_loop.shape[0], width, requires_grad=True)
    item_rows = torch.ones(real.item_loop.shape[0], width, requires_grad=True)

    def both_ways(graph: HeteroGraph) -> None:
        users, items = propagate(graph, REAL, user_rows, item_rows)
        (users.sum() + items.sum()).backward()

    kernels: tuple[Kernel, ...] = ("csr", "dgl")
    cases = {kernel: partial(both_ways, HeteroGraph({REAL: real}, kernel=kernel)) for kernel in kernels}
    return {kernel: min(times) for kernel, times in take_turns(cases, repeats=5).items()}
