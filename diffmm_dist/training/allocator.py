"""What becomes of freed memory: kept inside a phase, given back between phases."""

import ctypes


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system.

    Every step allocates and frees the same large tensors; with glibc's defaults each of them is mapped, cleared page by
    page and unmapped again, which takes longer than the arithmetic of an elementwise operation
    (docs/benchmarks/propagate.md).
    """
    trim_threshold, mmap_max = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc: nothing to gain
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Let glibc return what it keeps, pages inside its heap included.

    Between phases: their tensors have other sizes, so that what one leaves does not fit the next, and the peak would be
    higher than that of any of them (docs/benchmarks/memory.md).
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return
