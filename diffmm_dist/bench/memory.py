"""The most memory that a call takes beyond what was there before."""

import ctypes
from collections.abc import Callable

import torch

from diffmm_dist.monitoring.timing import status_kib

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
    _give_back_freed_memory()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        before = status_kib("VmRSS")
        call()
        return max(0, status_kib("VmHWM") - before) / 1024
    except (OSError, StopIteration):
        return None


def _give_back_freed_memory() -> None:
    """Let glibc return what it keeps, which would hide what the call takes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return
