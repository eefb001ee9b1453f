"""What a worker sends in a step: predicted by the model from the data and the cuts alone, and measured.

Bytes are counted as parallel/collectives.py says.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.phases import begin_stages, check_has_phases, settle
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData, shard_of
from diffmm_dist.errors import UserError
from diffmm_dist.graph.layout import TABLES
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.models.common.ranking import planned_together
from diffmm_dist.models.common.work import Cuts, Traffic, Work
from diffmm_dist.models.recipe import Needs
from diffmm_dist.parallel.group import run_group
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import build_recipe, load_training_data, messages_of, model_entry, open_dataset
from diffmm_dist.training.estimate import needs_of
from diffmm_dist.training.teacher import teacher_of
from diffmm_dist.training.worker import prepare_process


def bench_comm(config: Config, *, predicted: Sequence[int], measured: Sequence[int], out: str) -> None:
    """Write a JSON file with the bytes that each worker sends in the first step of each phase, by purpose.

    What earlier phases would leave is random, the same in prediction and measurement.

    Args:
        config: the run; nothing is written into its folder.
        predicted: numbers of workers to predict for; no process is started for them.
        measured: numbers of workers to measure with.
        out: the JSON file.

    Raises:
        UserError: the model has no phases, or a measurement differs from its prediction.
    """
    check_has_phases(config)
    prepare_process(config.cluster.threads_per_worker)
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, World.single())
    sizes = sorted({*predicted, *measured})
    traffic = {str(size): predict(config, dataset, data, size) for size in sizes}
    prediction = {size: [by_purpose(worker) for worker in workers] for size, workers in traffic.items()}
    found = {str(size): run_group(size, measure, config, traffic[str(size)][0]) for size in measured}
    measurement = {size: [worker.sent for worker in workers] for size, workers in found.items()}
    exchanges = {str(size): predict_exchanges(config, dataset, size) for size in sizes}
    taken = {size: workers[0].exchanges for size, workers in found.items()}
    storage.write_json(
        out,
        {
            "command": command(),
            "machine": machine(),
            "config": config.model_dump(mode="json"),
            "predicted_bytes": prediction,
            "measured_bytes": measurement,
            "predicted_exchanges_per_epoch": exchanges,
            "measured_exchanges_per_epoch": taken,
        },
    )
    wrong = [
        size
        for size, workers in measurement.items()
        if workers != prediction[size] or any(exchanges[size][phase] != count for phase, count in taken[size].items())
    ]
    if wrong:
        raise UserError(f"what {', '.join(wrong)} workers sent is not what was predicted; {out} has both")


class Measured(NamedTuple):
    """What a worker sends.

    Attributes:
        sent: bytes of the first step of each phase, by predicted purpose (``Traffic``).
        exchanges: messages and sums of an epoch of each phase, from its first two steps.
    """

    sent: dict[str, int]
    exchanges: dict[str, int]


def measure(config: Config, wanted: Traffic) -> Measured:
    """Measure the phases whose traffic is predicted; every worker of the group does it at the same time."""
    prepare_process(1)
    world = World.current()
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, world)
    recipe = build_recipe(config, data, device=world.device, teacher=teacher_of(config, dataset, data.shard))
    begin_stages(recipe)
    settle(config, recipe.model)
    context = PhaseContext(world, config.run.seed, 0)
    sent, exchanges = {}, {}
    step_size = config.train.batch_size * config.train.propagate_every
    for phase in recipe.phases:
        if phase.name in wanted:
            num_steps = phase.begin(context)
            first, counts = _first_steps(phase, world, min(num_steps, 2))
            world.exchanges.clear()
            phase.settle()
            phase.begin(context)  # as in later epochs, whose optimisers remember something
            first[TABLES] = world.sent_bytes[TABLES]
            sent[phase.name] = {purpose: first.get(purpose, 0) for purpose in wanted[phase.name]}
            exchanges[phase.name] = _of_epoch(counts, num_steps, step_size) + world.exchanges[TABLES]
    return Measured(by_purpose({name: sent[name] for name in wanted}), exchanges)


def _first_steps(phase: Phase, world: World, num_steps: int) -> tuple[dict[str, int], list[int]]:
    """Take steps; return the bytes that the first one sends, by purpose, and the exchanges of each."""
    counts: list[int] = []
    for step in range(num_steps):
        world.sent_bytes.clear()
        world.exchanges.clear()
        phase.step(step)
        counts.append(world.exchanges.total())
        if step == 0:
            first = dict(world.sent_bytes)
    return first, counts


def _of_epoch(counts: Sequence[int], num_steps: int, step_size: int) -> int:
    """Return the exchanges of an epoch from those of its first two steps, of which the first one plans for others."""
    plans = -(-num_steps // planned_together(step_size))
    return counts[-1] * num_steps + (counts[0] - counts[-1]) * plans


def predict_exchanges(config: Config, dataset: Dataset, size: int) -> dict[str, float]:
    """Return the exchanges of an epoch of each phase that each of ``size`` workers takes part in."""
    works = works_of(config, needs_of(config, dataset.manifest, num_workers=size))
    return {phase: work.exchanges for phase, work in works.items()}


def works_of(config: Config, needs: Needs) -> Mapping[str, Work]:
    """Return what the configured model says of one worker's work, by phase; ``check_has_phases`` comes first."""
    work = model_entry(config).measures.work
    assert work is not None, "check_has_phases comes first"
    found: Mapping[str, Work] = work(config.model, needs)
    return found


def by_purpose(traffic: Traffic) -> dict[str, int]:
    """Return the bytes of all phases together."""
    purposes = dict.fromkeys(purpose for of_phase in traffic.values() for purpose in of_phase)
    return {purpose: sum(of_phase.get(purpose, 0) for of_phase in traffic.values()) for purpose in purposes}


def predict(config: Config, dataset: Dataset, data: TrainingData, size: int) -> Sequence[Traffic]:
    """Return what each of ``size`` workers sends in one step of each phase, from the whole data in one process."""
    worlds = [World(rank, size, torch.device("cpu")) for rank in range(size)]
    shards = [shard_of(dataset, world, messages=messages_of(config)) for world in worlds]
    by_columns = config.graph.layout == "columns"
    cuts = Cuts(data, shards, config.train.batch_size, config.run.seed, by_columns, config.train.propagate_every)
    traffic: Sequence[Traffic] = model_entry(config).measures.traffic(config.model, cuts)
    return traffic
