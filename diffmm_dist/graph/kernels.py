"""The choice of the sparse kernel: ``graph.kernel=auto`` times both on the graph at hand."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from diffmm_dist.errors import UserError
from diffmm_dist.graph.dgl_package import import_dgl
from diffmm_dist.graph.hetero import REAL, HeteroGraph, Kernel
from diffmm_dist.graph.propagate import propagate
from diffmm_dist.graph.relation import Relation
from diffmm_dist.parallel.collectives import all_reduce_max, any_worker
from diffmm_dist.parallel.world import World

# It runs on every device and without DGL, `evaluate` and `export` use it, and it is the faster one on most graphs.
DEFAULT: Kernel = "csr"
_OTHER: Kernel = "dgl"
# The least times of one kernel in two measurements on a shared machine differ by up to a tenth each way; less than
# that says nothing, and a sum of neighbours is a small part of an epoch.
MARGIN = 1.25
_CONFIRMED = 1.1  # a least time that a second round came as near to was no accident
_LEAST_ROUNDS = 3
# Rounds of a small graph take a millisecond, and a neighbour keeps the processor for several: they go on for longer
# than such a moment, and for longer still while they disagree.
_LEAST_S, _MOST_S = 0.5, 3.0


@dataclass(frozen=True)
class KernelChoice:
    """A kernel and why it was chosen.

    Attributes:
        kernel: the kernel.
        reason: for the log.
    """

    kernel: Kernel
    reason: str


def choose_kernel(requested: str, real: Relation, *, width: int, world: World) -> KernelChoice:
    """Return the kernel to use; ``auto`` times both on this graph, forward and backward.

    Args:
        requested: ``csr``, ``dgl`` or ``auto``.
        real: the real graph.
        width: columns of the rows to propagate.
        world: every worker calls it at the same time, and all get the same answer.

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
    if any_worker(missing is not None, world):  # all choose alike: timing the kernels needs all of them
        missing = missing or UserError("another worker cannot import DGL; install it there, or set graph.kernel=csr")
        if requested == "dgl":
            raise missing
        return KernelChoice("csr", str(missing))
    if requested == "dgl":
        return KernelChoice("dgl", "as configured")
    return fastest(_stopwatch(real, width), world)


def _missing_dgl() -> UserError | None:
    """Return why DGL cannot be imported here, or None if it can."""
    try:
        import_dgl()
    except UserError as error:
        return error
    return None


def _stopwatch(real: Relation, width: int) -> Callable[[Kernel], float]:
    """Return a function that runs a kernel once, forward and backward, and returns the seconds."""
    user_rows = torch.ones(real.user_loop.shape[0], width, requires_grad=True)
    item_rows = torch.ones(real.item_loop.shape[0], width, requires_grad=True)
    kernels: tuple[Kernel, ...] = (DEFAULT, _OTHER)
    graphs = {kernel: HeteroGraph({REAL: real}, kernel=kernel) for kernel in kernels}

    def seconds_of(kernel: Kernel) -> float:
        start = time.perf_counter()
        users, items = propagate(graphs[kernel], REAL, user_rows, item_rows)
        (users.sum() + items.sum()).backward()
        return time.perf_counter() - start

    for kernel in kernels:
        seconds_of(kernel)  # builds what the graph keeps
    return seconds_of


def fastest(seconds_of: Callable[[Kernel], float], world: World) -> KernelChoice:
    """Time the kernels in turns, and leave the default only for one that is clearly and repeatedly faster.

    A kernel's time is the least of its rounds, since a neighbour on the machine only ever adds; of several workers the
    slowest counts.

    Args:
        seconds_of: runs a kernel once and returns the seconds.
        world: every worker calls it at the same time, and all get the same answer.
    """
    rounds: dict[Kernel, list[float]] = {DEFAULT: [], _OTHER: []}
    while any_worker(not _enough(rounds), world):
        for kernel, seconds in rounds.items():
            seconds.append(seconds_of(kernel))
    least = {kernel: all_reduce_max(min(seconds), world) for kernel, seconds in rounds.items()}
    sure = not any_worker(not _confirmed(rounds), world)
    timings = (
        f"{DEFAULT} {1e3 * least[DEFAULT]:.2f} ms, {_OTHER} {1e3 * least[_OTHER]:.2f} ms, forward and backward on this "
        f"graph, the least of {len(rounds[DEFAULT])} rounds in turns"
    )
    if least[DEFAULT] <= MARGIN * least[_OTHER]:
        return KernelChoice(DEFAULT, f"the default, for which {_OTHER} is not {MARGIN:g} times as fast: {timings}")
    if not sure:
        return KernelChoice(DEFAULT, f"the default, since the machine is too busy to tell them apart: {timings}")
    return KernelChoice(_OTHER, f"more than {MARGIN:g} times as fast as the default: {timings}")


def _enough(rounds: Mapping[Kernel, Sequence[float]]) -> bool:
    """Return whether there are rounds enough, or no time for more."""
    spent = sum(map(sum, rounds.values()))
    if len(rounds[DEFAULT]) < _LEAST_ROUNDS:
        return False
    return spent >= _MOST_S or (spent >= _LEAST_S and _confirmed(rounds))


def _confirmed(rounds: Mapping[Kernel, Sequence[float]]) -> bool:
    """Return whether two rounds of each kernel agree on its least time."""
    for seconds in rounds.values():
        first, second = sorted(seconds)[:2]
        if second > _CONFIRMED * first:
            return False
    return True
