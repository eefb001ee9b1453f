"""How many threads this process may use: CPU affinity, the container's CPU quota and OMP_NUM_THREADS, in one place.

``os.cpu_count`` counts the machine's cores, whoever else they are promised to. A thread more than there are cores for
makes every barrier of OpenMP wait until its neighbour is scheduled out: an epoch has taken forty times as long.

Standard library only: the command line imports it before torch.
"""

import os
import re
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from diffmm_dist.cgroups import own_groups, text_of

VARIABLE = "OMP_NUM_THREADS"
_SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# How often libgomp looks again before a waiting thread sleeps. Its own 300,000 take some 10 ms, which is free where
# each thread has a core to itself; where a neighbour has it, all of them are lost at every barrier. 10,000 outlast the
# waits inside an epoch on a quiet machine, which 1,000 do not (docs/benchmarks/epoch.md).
SPIN_COUNT = "10000"
# Taken when the process starts, since OpenMP may bind its first thread to a single core (OMP_PROC_BIND).
_AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


@dataclass(frozen=True)
class Cores:
    """What this process may use.

    Attributes:
        of_machine: cores that all workers here share, at least 1.
        of_process: threads that OMP_NUM_THREADS grants each of them, None if it grants no number.
        reason: what bounds ``of_machine``, for the log.
        mistake: a sentence about an OMP_NUM_THREADS that is no number of threads, which is ignored.
    """

    of_machine: int
    of_process: int | None
    reason: str
    mistake: str | None = None

    def share(self, num_workers: int = 1) -> tuple[int, str]:
        """Return the threads of each of ``num_workers`` on this machine, and why."""
        threads = max(1, self.of_machine // num_workers)
        if self.of_process is not None and self.of_process < threads:
            return self.of_process, f"{VARIABLE}={self.of_process}"
        return threads, self.reason if num_workers == 1 else f"{self.reason}, shared by {num_workers} workers"


def usable_cores(
    *, root: Path = Path("/"), word: str | None = None, affinity: int | None = _AFFINITY, installed: int | None = None
) -> Cores:
    """Return what this process may use.

    Args:
        root: where ``proc`` and the mounted control groups are.
        word: what OMP_NUM_THREADS says; by default what it said when the process started.
        affinity: cores that the process may run on, None where the system does not say.
        installed: cores of the machine.
    """
    installed = installed or os.cpu_count() or 1
    count, reason = installed, f"this machine has {_counted(installed, 'core')}"
    if affinity is not None and affinity < count:
        count, reason = affinity, f"CPU affinity allows {affinity} of {_counted(installed, 'core')}"
    quota = min(_quotas(root), default=None)
    if quota is not None and quota < count:
        count, reason = max(1, int(quota)), f"the container's CPU quota is {quota:.4g} of {_counted(installed, 'core')}"
    word = _word if word is None else word
    granted = _granted(word)
    mistake = None
    if granted is None and word.strip():
        mistake = f"{VARIABLE}={word[:40]!r} is no number of threads and is ignored; set it to 1 or more"
    return Cores(count, granted, reason, mistake)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Threads:
    """The threads of a process.

    Attributes:
        count: how many.
        line: the same with the reason, for the log.
        warning: a sentence about more threads than there are cores for.
    """

    count: int
    line: str
    warning: str | None = None


def choose_threads(requested: int, cores: Cores, *, num_workers: int) -> Threads:
    """Return what was asked for, or with 0 one worker's share of what may be used."""
    share, reason = cores.share(num_workers)
    if not requested:
        return Threads(share, f"{_counted(share, 'thread')}: {reason}")
    line = f"{_counted(requested, 'thread')}: as configured"
    if requested <= share:
        return Threads(requested, line)
    return Threads(
        requested,
        line,
        f"{_counted(requested, 'thread')} where this process may use {share} ({reason}): threads without a core of "
        "their own wait for one another at every step; set cluster.threads_per_worker to 0 to take what there is",
    )


def _granted(word: str) -> int | None:
    """Return the number of OpenMP's list of numbers of threads that counts, its first; None if it is no such list."""
    if not re.fullmatch(r"\s*\+?0*[1-9][0-9]{0,17}\s*(,\s*\+?0*[1-9][0-9]{0,17}\s*)*", word, flags=re.ASCII):
        return None
    return int(word.split(",")[0])


def _quotas(root: Path) -> Iterator[float]:
    """Yield every CPU quota, in cores, of this process's control group and of those around it."""
    yield from (quota for quota in map(_quota, own_groups("cpu", root=root)) if quota is not None)


def _quota(folder: Path) -> float | None:
    """Return a control group's quota in cores, None if it has none."""
    old = text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")
    text = text_of(folder / "cpu.max") or " ".join(old)
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):  # "max" or -1: no quota
        return None
    return int(words[0]) / int(words[1])


_word = os.environ.get(VARIABLE, "")


def hear(word: str | None) -> None:
    """Take a word for the user's OMP_NUM_THREADS, in a process whose own was set by somebody else; None is no word."""
    global _word
    _word = word or ""


def heard() -> str | None:
    """Return the user's OMP_NUM_THREADS, None without one; what ``tell_libraries`` has set is not the user's."""
    return _word or None


def started_with(variable: str, *, root: Path = Path("/")) -> str | None:
    """Return a variable of the environment with which this process was started, whatever was set since."""
    prefix = f"{variable}="
    for entry in text_of(root / "proc/self/environ").split("\0"):
        if entry.startswith(prefix):
            return entry.removeprefix(prefix)
    return None


def tell_libraries(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Tell the libraries that are not loaded yet how many threads to make, and how long these may spin.

    OpenMP (torch, DGL, faiss), BLAS and Arrow all read OMP_NUM_THREADS when they are loaded.

    Returns:
        A sentence about an OMP_NUM_THREADS that was ignored.
    """
    hear(environment.get(VARIABLE))
    cores = usable_cores(word=environment.get(VARIABLE, ""))
    threads, _ = cores.share()
    if threads != cores.of_process:
        environment[VARIABLE] = str(threads)
    if not any(name in environment for name in _SPINNING):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
    return cores.mistake
