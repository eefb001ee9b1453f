"""What this machine has, and the cluster that a run would use."""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from diffmm_dist.cgroups import own_groups, text_of
from diffmm_dist.cores import usable_cores
from diffmm_dist.doctor.finding import Finding, first_line
from diffmm_dist.errors import UserError

GIB = 2**30
_ANSWER_S = 3.0


def cores() -> Iterator[Finding]:
    """Yield how many cores may be used, and why so many."""
    found = usable_cores()
    threads, reason = found.share()
    text = f"{threads} thread{'' if threads == 1 else 's'} may be used: {reason}"
    yield Finding("cores", "note", f"{text}; {found.mistake}") if found.mistake else Finding("cores", "ok", text)


def memory(*, root: Path = Path("/")) -> Iterator[Finding]:
    """Yield how much memory there is to get, and what limits it.

    Args:
        root: where ``proc`` and the mounted control groups are.
    """
    from diffmm_dist.training.available import available_here

    limit = memory_limit(root=root)
    whole = f"the container may use {limit / GIB:.2f} GiB" if limit else "no container limits it"
    yield Finding("memory", "ok", f"{available_here(root=root) / GIB:.2f} GiB available; {whole}")


def memory_limit(*, root: Path = Path("/")) -> int | None:
    """Return the least limit of the control groups that this process is in, in bytes; None without one."""
    texts = [
        text_of(folder / name)
        for folder in own_groups("memory", root=root)
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    limits = [int(text) for text in texts if text.isdecimal()]
    # Version 1 writes no limit as a number larger than any memory.
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def gpus() -> Iterator[Finding]:
    """Yield a line for each GPU that torch can use, or that there is none."""
    try:
        torch: Any = import_module("torch")
    except Exception as error:  # which torch's own line says too
        yield Finding("gpu", "note", f"not known: {first_line(error)}")
        return
    if not torch.cuda.is_available():
        text = "none: training uses the CPU"
        if torch.version.cuda:
            yield Finding("gpu", "note", f"{text}; torch is built for CUDA but sees no GPU")
        else:
            yield Finding("gpu", "ok", text)
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield Finding("gpu", "ok", f"cuda:{index} is {found.name} with {found.total_memory / GIB:.1f} GiB")


def cluster(address: str | None) -> Iterator[Finding]:
    """Yield whether a cluster of Ray's answers; nothing is started or joined.

    Args:
        address: of the cluster; None takes RAY_ADDRESS.

    Raises:
        UserError: nothing answers there, or it is no address.
    """
    from diffmm_dist.launch.ray_package import check_answers

    given, address = address, address or os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding("cluster", "ok", "RAY_ADDRESS is not set: training runs on this machine")
    elif check_answers(address, timeout_s=_ANSWER_S):
        yield Finding("cluster", "ok", f"{address} answers")
    elif given:
        raise UserError(f"--address {given} is no HOST:PORT; give the address of the cluster's head, such as HEAD:6379")
    else:
        yield Finding("cluster", "note", f"{address} is no HOST:PORT, so whether it answers is not known")
