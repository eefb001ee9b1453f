"""The memory that this process and the workers beside it can still get."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffmm_dist.cgroups import own_groups, text_of

if TYPE_CHECKING:
    import torch

_RECLAIMABLE = ("inactive_file", "active_file")  # page cache, which the kernel gives up for whoever needs memory


def available_memory(device: "torch.device", *, root: Path = Path("/")) -> int:
    """Return the bytes that processes can still get here: on this machine, in their control groups, or on the GPU.

    What others on the machine or in the groups use is taken off; page cache that the kernel can give up is not. Swap
    does not count: an epoch that swaps takes days.

    Args:
        device: what the worker computes on.
        root: where ``proc`` and the mounted control groups are.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return available_here(root=root)


def available_here(*, root: Path = Path("/")) -> int:
    """Return the same of this machine's memory, also where torch cannot be imported."""
    return max(0, min([_of_machine(root), *_of_groups(root)]))


def _of_machine(root: Path) -> int:
    for line in text_of(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what each limited control group of this process has left; its ancestors' limits hold for it too."""
    for folder in own_groups("memory", root=root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            size, current = text_of(folder / limit), text_of(folder / used)
            if size.isdecimal():  # "max": no limit; of version 1 that is a number larger than any memory
                yield int(size) - (int(current) if current.isdecimal() else 0) + _reclaimable(folder)


def _reclaimable(folder: Path) -> int:
    """Return the page cache of a control group; version 1 counts that of the groups below it under total_NAME."""
    values = {}
    for line in text_of(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal():
            values[name] = int(value)
    return sum(values.get(f"total_{name}", values.get(name, 0)) for name in _RECLAIMABLE)
