"""What of the exchanges hides behind sums: steps on a slow network, with exchanges under way beside them and without.

The machine's own loopback is faster than the sums, so every exchange is made to take as long as its bytes would on a
network of a given speed, one after the other; the time is slept, so that it takes nothing from the processor.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.distributed as dist

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.phases import check_has_phases
from diffmm_dist.bench.scaling import in_turns, measure, speedup
from diffmm_dist.parallel.group import run_group
from diffmm_dist.runs.config import Config

_SLOWED = ("all_to_all_single", "all_reduce", "broadcast")
VARIANTS = {"one after the other": False, "overlapped": True}


def bench_overlap(
    config: Config, *, num_workers: int, network_mb_s: float, num_steps: int, repeats: int, out: str
) -> None:
    """Time the phases' epochs on a slowed network, the variants taking turns, and write a JSON file.

    Args:
        config: the run; nothing is written into its folder.
        num_workers: W, of one thread each unless configured.
        network_mb_s: 10^6 bytes per second that a worker sends.
        num_steps: steps to time of each phase, after one that is not timed.
        repeats: how often each variant is measured.
        out: the JSON file.

    Raises:
        UserError: the model has no phases.
    """
    check_has_phases(config)
    groups = {
        name: partial(run_group, num_workers, _measure, config, num_steps, network_mb_s * 1e6, overlapped)
        for name, overlapped in VARIANTS.items()
    }
    measured = in_turns(groups, repeats=repeats)
    storage.write_json(
        out,
        {
            "command": command(),
            "machine": machine() | {"threads": max(1, config.cluster.threads_per_worker)},
            "config": config.model_dump(mode="json"),
            "num_workers": num_workers,
            "network_mb_s": network_mb_s,
            "overlap": measured,
            "speedup": speedup(*measured.values()),
        },
    )


def _measure(config: Config, num_steps: int, bytes_per_s: float, overlapped: bool) -> dict[str, Any]:
    with slowed(bytes_per_s, overlapped=overlapped):
        return measure(config, num_steps)


@contextmanager
def slowed(bytes_per_s: float, *, overlapped: bool) -> Iterator[None]:
    """Let each of torch's collectives of this process take as long as on a network of some speed.

    Args:
        bytes_per_s: that a worker sends, of one exchange after the other.
        overlapped: an exchange that is begun goes on while the process works, instead of being waited for at once.
    """
    whole = {name: getattr(dist, name) for name in _SLOWED}
    network = _Network(bytes_per_s, overlapped)
    for name, operation in whole.items():
        setattr(dist, name, network.slow(name, operation))
    try:
        yield
    finally:
        for name, operation in whole.items():
            setattr(dist, name, operation)


class _Network:
    """What is sent one after the other, at some speed."""

    def __init__(self, bytes_per_s: float, overlapped: bool) -> None:
        self._bytes_per_s, self._overlapped = bytes_per_s, overlapped
        self._free_at = 0.0

    def slow(self, name: str, operation: Any) -> Any:
        """Return one of torch's collectives that takes as long as this network does."""

        def collective(tensor: Any, *arguments: Any, **options: Any) -> Any:
            sent = arguments[0] if name == "all_to_all_single" else tensor
            work = operation(tensor, *arguments, **options)
            self._free_at = max(self._free_at, time.perf_counter()) + sent.nbytes / self._bytes_per_s
            arrived = _Arrival(work, self._free_at)
            if work is None or not self._overlapped:
                arrived.wait()
            return work if work is None else arrived

        return collective


class _Arrival:
    """An exchange that ends when torch's does and its bytes would have arrived."""

    def __init__(self, work: Any, at: float) -> None:
        self._work, self._at = work, at

    def wait(self) -> None:
        """Wait for both."""
        if self._work is not None:
            self._work.wait()
        time.sleep(max(0.0, self._at - time.perf_counter()))
