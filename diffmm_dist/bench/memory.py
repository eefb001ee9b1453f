"""The most memory that a call takes beyond what was there before."""

import gc
from collections.abc import Callable

import torch

from diffmm_dist.monitoring.timing import status_kib
from diffmm_dist.training.allocator import give_back_freed_memory

_MIB = 2**20


def extra_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """Return by how much the peak during a call exceeds the memory before it, in MiB.

    On the CPU that is resident memory, its peak reset through /proc/self/clear_refs; None where that cannot be done.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    give_back_freed_memory()  # it would hide what the call takes
    try:
        _reset_peak()
        before = status_kib("VmRSS")
        call()
        return max(0, status_kib("VmHWM") - before) / 1024
    except (OSError, StopIteration):
        return None


def peak_bytes(*, reset: bool = False) -> int:
    """Return the most resident memory of this process so far, or since the last reset, which gives back freed memory.

    Raises:
        OSError, StopIteration: this is not Linux.
    """
    if reset:
        gc.collect()
        give_back_freed_memory()
        _reset_peak()
    return status_kib("VmHWM") * 1024


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
