"""Seconds and memory of this process."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Name = TypeVar("Name", bound=str)


class Stopwatch:
    """Adds up seconds by name; what it has added can be saved and restored, so a resumed epoch is timed whole."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = seconds if seconds is not None else {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the seconds of the enclosed block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def take_turns(cases: Mapping[Name, Callable[[], object]], *, repeats: int) -> dict[Name, list[float]]:
    """Return the seconds of every repetition of each case.

    The cases take turns, so that a busy moment hits them all; one unrecorded turn before builds what they keep.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_rss_gib() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    try:
        kib = max(_largest_before, status_kib("VmHWM"))
    except (OSError, StopIteration):  # not Linux; getrusage also counts what the starting process had used
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20


_largest_before = 0  # KiB, the largest before Linux was last told to forget it


class PeakMemory:
    """The largest resident memory of this process while named things were done, in GiB, where Linux tells."""

    def __init__(self) -> None:
        self.gib: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Take down the peak of the enclosed block under ``name``, or what was larger there before."""
        global _largest_before  # of the process, and so is what Linux is told to forget
        try:
            _largest_before = max(_largest_before, status_kib("VmHWM"))
            with open("/proc/self/clear_refs", "w", encoding="utf-8") as marks:
                marks.write("5")  # forget the peak
        except (OSError, StopIteration):  # not Linux, or not allowed: nothing can be said of a part
            yield
            return
        try:
            yield
        finally:
            self.gib[name] = max(self.gib.get(name, 0.0), status_kib("VmHWM") / 2**20)


def status_kib(field: str) -> int:
    """Return a field of Linux's account of this process, such as VmRSS, in KiB.

    Raises:
        OSError, StopIteration: there is no such account, or no such field in it.
    """
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(f"{field}:"))
