"""How time falls with the number of workers: the steps of every phase, the sizes taking turns."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, TypeVar

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.phases import begin_stages, check_has_phases, settle
from diffmm_dist.errors import UserError
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.monitoring.log import logger
from diffmm_dist.monitoring.timing import peak_rss_gib
from diffmm_dist.parallel.collectives import any_worker
from diffmm_dist.parallel.group import run_group
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import build_recipe, load_training_data, open_dataset
from diffmm_dist.training.teacher import teacher_of
from diffmm_dist.training.worker import prepare_process

Key = TypeVar("Key", bound=Hashable)


def bench_scaling(
    config: Config, sizes: Sequence[int], *, num_steps: int, repeats: int, out: str, datasets: Sequence[str] = ()
) -> None:
    """Time the phases of the first epoch with several numbers of workers and write a JSON file.

    Every worker has ``cluster.threads_per_worker`` threads, 1 if that is 0. The sizes take turns, so that a busy moment
    hits them all. An epoch's time is that of its preparation and of all its steps, from the median step.

    Args:
        config: the run; nothing is written into its folder.
        sizes: numbers of workers; the first is what the others are compared with.
        num_steps: steps to time of each phase, after one that is not timed.
        repeats: how often each size is measured.
        out: the JSON file.
        datasets: one for each size, for weak scaling: the batch grows with the number of workers too.

    Raises:
        UserError: there are not as many datasets as sizes, or the model has no phases.
    """
    check_has_phases(config)
    configs = _weak(config, sizes, datasets) if datasets else dict.fromkeys(sizes, config)
    groups = {size: partial(run_group, size, measure, configs[size], num_steps) for size in sizes}
    measured = in_turns(groups, repeats=repeats, name=lambda size: f"{size} workers")
    storage.write_json(
        out,
        {
            "command": command(),
            "machine": machine() | {"threads": max(1, config.cluster.threads_per_worker)},
            "config": config.model_dump(mode="json"),
            "num_steps": num_steps,
            "datasets": list(datasets),
            "scaling": {str(size): results for size, results in measured.items()},
            "efficiency": {str(size): efficiency(measured, sizes[0], size, weak=bool(datasets)) for size in sizes[1:]},
        },
    )


def in_turns(
    groups: Mapping[Key, Callable[[], Sequence[Mapping[str, Any]]]],
    *,
    repeats: int,
    name: Callable[[Key], str] = str,
) -> dict[Key, list[dict[str, Any]]]:
    """Let groups of workers measure one after the other, again and again; return what ``slowest`` says of each time."""
    measured: dict[Key, list[dict[str, Any]]] = {key: [] for key in groups}
    for _ in range(repeats):
        for key, run in groups.items():
            measured[key].append(slowest(run()))
            logger.info("%s: %s", name(key), measured[key][-1])
    return measured


def _weak(config: Config, sizes: Sequence[int], datasets: Sequence[str]) -> dict[int, Config]:
    """Return a configuration for each size, in which every worker has as much to do as one has alone."""
    if len(datasets) != len(sizes):
        raise UserError(
            f"--dataset is given {len(datasets)} times for {len(sizes)} numbers of workers; name one for each"
        )
    batch_size = config.train.batch_size
    return {
        size: config.model_copy(
            update={
                "data": config.data.model_copy(update={"path": path}),
                "train": config.train.model_copy(update={"batch_size": batch_size * size // sizes[0]}),
            }
        )
        for size, path in zip(sizes, datasets, strict=True)
    }


def measure(config: Config, num_steps: int) -> dict[str, Any]:
    """Time this worker's phases; every worker of the group does it at the same time."""
    prepare_process(max(1, config.cluster.threads_per_worker))
    world = World.current()
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, world)
    recipe = build_recipe(config, data, device=world.device, teacher=teacher_of(config, dataset, data.shard))
    begin_stages(recipe)
    context = PhaseContext(world, config.run.seed, 0)
    epoch_s = {}
    sent = {}
    for phase in recipe.phases:
        settle(config, recipe.model)  # a few steps of the phases before leave it mostly empty
        epoch_s[phase.name], steps = _epoch_seconds(phase, context, num_steps)
        sent[phase.name] = {purpose: num_bytes / steps for purpose, num_bytes in world.sent_bytes.items()}
    return {"epoch_s": epoch_s, "sent_bytes_per_step": sent, "peak_rss_gib": peak_rss_gib()}


def _epoch_seconds(phase: Phase, context: PhaseContext, num_steps: int) -> tuple[float, int]:
    """Return the seconds of the phase's epoch and how many steps were taken."""
    start = time.perf_counter()
    total = phase.begin(context)
    any_worker(False, context.world)
    prepared = time.perf_counter() - start
    context.world.sent_bytes.clear()
    seconds = []
    for index in range(min(num_steps + 1, total)):
        start = time.perf_counter()
        phase.step(index)
        any_worker(False, context.world)
        seconds.append(time.perf_counter() - start)
    return prepared + total * median(seconds[1:] or seconds), len(seconds)


def slowest(workers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the slowest worker's times, the most that any sends, the largest memory and the sum of all."""
    phases = list(workers[0]["epoch_s"])
    memory = [worker["peak_rss_gib"] for worker in workers]
    return {
        "epoch_s": {phase: max(worker["epoch_s"][phase] for worker in workers) for phase in phases},
        "sent_bytes_per_step": {
            phase: _largest([worker["sent_bytes_per_step"][phase] for worker in workers]) for phase in phases
        },
        "peak_rss_gib": max(memory),
        "all_workers_rss_gib": sum(memory),
    }


def _largest(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the largest value of each key."""
    return {key: max(table.get(key, 0) for table in tables) for key in tables[0]}


def efficiency(
    measured: Mapping[int, Sequence[Mapping[str, Any]]], base: int, size: int, *, weak: bool = False
) -> dict[str, dict[str, float]]:
    """Return each phase's speed-up over what perfect scaling would give, pair by pair: median, least and most.

    Perfect is the same time for more workers with as much more to do, if ``weak``, and else less time for the same.
    """
    return speedup(measured[base], measured[size], over=1 if weak else size / base)


def speedup(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], *, over: float = 1
) -> dict[str, dict[str, float]]:
    """Return how many times as fast each phase is, as a share of ``over``, pair by pair: median, least and most."""
    result = {}
    for phase in before[0]["epoch_s"]:
        ratios = [
            one["epoch_s"][phase] / (other["epoch_s"][phase] * over) for one, other in zip(before, after, strict=True)
        ]
        result[phase] = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
    return result
