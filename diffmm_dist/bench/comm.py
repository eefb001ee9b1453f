"""What a worker sends in a step: predicted by the model from the data and the cuts alone, and measured.

Bytes are counted as parallel/collectives.py says.
"""

from collections.abc import Mapping, Sequence

import torch

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.phases import begin_stages, check_has_phases, settle
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData, shard_of
from diffmm_dist.errors import UserError
from diffmm_dist.models.base import PhaseContext
from diffmm_dist.models.common.work import Cuts, Traffic
from diffmm_dist.parallel.group import run_group
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import build_recipe, load_training_data, messages_of, model_entry, open_dataset
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
    traffic = {str(size): predict(config, dataset, data, size) for size in sorted({*predicted, *measured})}
    prediction = {size: [by_purpose(worker) for worker in workers] for size, workers in traffic.items()}
    measurement = {str(size): run_group(size, measure, config, traffic[str(size)][0]) for size in measured}
    storage.write_json(
        out,
        {
            "command": command(),
            "machine": machine(),
            "config": config.model_dump(mode="json"),
            "predicted_bytes": prediction,
            "measured_bytes": measurement,
        },
    )
    wrong = [size for size, workers in measurement.items() if workers != prediction[size]]
    if wrong:
        raise UserError(f"what {', '.join(wrong)} workers sent is not what was predicted; {out} has both")


def measure(config: Config, wanted: Traffic) -> dict[str, int]:
    """Return what this worker sends in the first step of each phase that is predicted, by predicted purpose."""
    prepare_process(1)
    world = World.current()
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, world)
    recipe = build_recipe(config, data, device=world.device, teacher=teacher_of(config, dataset, data.shard))
    begin_stages(recipe)
    settle(config, recipe.model)
    context = PhaseContext(world, config.run.seed, 0)
    sent: dict[str, Mapping[str, int]] = {}
    for phase in recipe.phases:
        if phase.name in wanted:
            phase.begin(context)
            world.sent_bytes.clear()
            phase.step(0)
            sent[phase.name] = {purpose: world.sent_bytes[purpose] for purpose in wanted[phase.name]}
    return by_purpose({name: sent[name] for name in wanted})


def by_purpose(traffic: Traffic) -> dict[str, int]:
    """Return the bytes of all phases together."""
    purposes = dict.fromkeys(purpose for of_phase in traffic.values() for purpose in of_phase)
    return {purpose: sum(of_phase.get(purpose, 0) for of_phase in traffic.values()) for purpose in purposes}


def predict(config: Config, dataset: Dataset, data: TrainingData, size: int) -> Sequence[Traffic]:
    """Return what each of ``size`` workers sends in one step of each phase, from the whole data in one process."""
    worlds = [World(rank, size, torch.device("cpu")) for rank in range(size)]
    shards = [shard_of(dataset, world, messages=messages_of(config)) for world in worlds]
    by_columns = config.graph.layout == "columns"
    cuts = Cuts(data, shards, config.train.batch_size, config.run.seed, by_columns)
    traffic: Sequence[Traffic] = model_entry(config).measures.traffic(config.model, cuts)
    return traffic
