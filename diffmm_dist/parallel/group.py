"""Process groups: what carries their messages, and several workers here without Ray, for benchmarks, a process each."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch.distributed as dist

from diffmm_dist.interrupts import result_of
from diffmm_dist.staging import scratch_folder

_TIMEOUT = timedelta(minutes=30)


def backend(*, gpus: bool) -> str:
    """Return torch's name of what carries messages: by NCCL what lies on GPUs, by Gloo what lies in main memory."""
    return "cpu:gloo,cuda:nccl" if gpus else "gloo"


def run_group(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in ``size`` new processes that form a process group, and return what each returned, by rank.

    Args:
        size: number of processes; one process forms no group.
        function: of a module, so that it can be sent.
        arguments: for it.
    """
    with scratch_folder("diffmm-meeting-") as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        with new_processes(size) as processes:
            members = [processes.submit(_member, rank, size, rendezvous, function, arguments) for rank in range(size)]
            return [result_of(member) for member in members]


@contextmanager
def new_processes(size: int, *, initializer: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Start processes from nothing, which are killed if the block is interrupted instead of being waited for."""
    with ProcessPoolExecutor(size, mp_context=get_context("spawn"), initializer=initializer) as processes:
        try:
            yield processes
        except Exception:
            raise
        except BaseException:
            _kill_children()
            raise


@contextmanager
def changed_environment(changed: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process and of those that it starts meanwhile; afterwards they are what they were."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _kill_children() -> None:
    for process in active_children():
        process.kill()


def _member(rank: int, size: int, rendezvous: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if size == 1:
        return function(*arguments)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()
