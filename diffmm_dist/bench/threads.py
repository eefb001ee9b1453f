"""A training epoch with other numbers of threads, and other ways in which they wait, on a quiet or a busy machine.

How threads wait is read once, when torch is loaded, so every variant has a process of its own, which stays; they take
turns, an epoch each. Beside them run as many endless loops as wanted, each of which keeps a core busy.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from diffmm_dist.bench.epoch import Epochs, size_entry
from diffmm_dist.bench.gpus import edges_read, epoch_work
from diffmm_dist.bench.operations import Operation, Variant, measure, write_results
from diffmm_dist.bench.phases import check_has_phases
from diffmm_dist.cores import tell_libraries, usable_cores
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import load_training_data, open_dataset
from diffmm_dist.training.worker import prepare_process

_LOOKS = 1_000_000  # of a busy loop between two looks at whether the process that started it is still there
_OWN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_LIBGOMP_SPINS = "300000"


@dataclass(frozen=True)
class Setting:
    """How an epoch is run.

    Attributes:
        environment: of the process, before this program adds to it; what is not named is not set.
        threads: ``cluster.threads_per_worker``.
        one_core: whether the process may run on one core only.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    one_core: bool = False


def settings(num_cores: int) -> dict[str, dict[str, Setting]]:
    """Return the settings to compare, by operation and name."""
    one = {"OMP_NUM_THREADS": "1"}
    return {
        "epoch, OMP_NUM_THREADS=1 on one core": {
            "one thread, as told": Setting(one, 1, one_core=True),
            "what may be used": Setting(one, 0, one_core=True),
            "all cores of the machine": Setting(one, num_cores, one_core=True),
        },
        "epoch, all cores": {
            "what may be used": Setting(),
            "it, waiting as libgomp does": Setting({"GOMP_SPINCOUNT": _LIBGOMP_SPINS}),
            "it, waiting asleep": Setting({"OMP_WAIT_POLICY": "PASSIVE"}),
            "one thread": Setting(threads=1),
        },
    }


def bench_threads(config: Config, *, repeats: int, busy: int, out: str) -> None:
    """Time whole epochs with other threads, after one that is not timed; write a JSON file.

    Args:
        config: the run, on the CPU; nothing is written into its folder.
        repeats: epochs of each variant.
        busy: endless loops beside them.
        out: the JSON file.

    Raises:
        UserError: the model has no phases.
    """
    check_has_phases(config)
    prepare_process(0)
    device = torch.device("cpu")
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, World.single())
    works = epoch_work(config, dataset, 1, {}, edges_read(config, data)).values()
    flop, num_bytes = sum(work.flops for work in works), sum(work.memory_bytes for work in works)
    operations = {}
    for name, variants in settings(usable_cores().of_machine).items():
        with ExitStack() as stack:
            calls = {variant: stack.enter_context(_process(config, setting)) for variant, setting in variants.items()}
            stack.enter_context(_busy_loops(busy))
            timed = {variant: Variant(call.run, flop, num_bytes) for variant, call in calls.items()}
            facts = {"loops beside": busy} | {f"threads, {variant}": call.threads for variant, call in calls.items()}
            operation = Operation(name, timed, partial(dict, facts), memory=False)
            operations[name] = measure(operation, repeats=repeats, device=device)
    write_results(out, "threads", [size_entry(config, dataset, operations)], repeats=repeats, device=device)


@dataclass(frozen=True)
class _Running:
    """A process that runs an epoch at a time."""

    process: ProcessPoolExecutor
    threads: int

    def run(self) -> None:
        self.process.submit(_run).result()


@contextmanager
def _process(config: Config, setting: Setting) -> Iterator[_Running]:
    """Start a process in which torch is loaded under a setting, and build the model there."""
    affinity = os.sched_getaffinity(0)
    before = {name: os.environ.pop(name, None) for name in _OWN}
    os.environ.update(setting.environment)
    if setting.one_core:
        os.sched_setaffinity(0, {min(affinity)})
    try:
        # It is told before its first task, which loads torch.
        process = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=tell_libraries)
        started = process.submit(_prepare, config, setting.threads)
    finally:
        os.sched_setaffinity(0, affinity)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    with process:
        yield _Running(process, started.result())


_epochs: Epochs | None = None  # of such a process


def _prepare(config: Config, threads: int) -> int:
    """Build the model in this process; return its number of threads."""
    global _epochs
    prepare_process(threads)
    _epochs = Epochs(config, open_dataset(config), torch.device("cpu"))
    return torch.get_num_threads()


def _run() -> None:
    assert _epochs is not None
    for phase in _epochs.phases:
        _epochs.run(phase)


@contextmanager
def _busy_loops(number: int) -> Iterator[None]:
    """Keep as many cores busy, until the block or this process ends."""
    loops = [get_context("spawn").Process(target=_keep_busy, daemon=True) for _ in range(number)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.terminate()
            loop.join()


def _keep_busy() -> None:
    parent: Any = parent_process()
    while parent.is_alive():
        for _ in range(_LOOKS):
            pass
