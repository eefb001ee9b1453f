"""One training epoch, phase by phase. FLOP and bytes are those of ``bench gpus``: the model says what a worker does."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from diffmm_dist.bench.gpus import edges_read, epoch_work
from diffmm_dist.bench.operations import Operation, Variant, measure, write_results
from diffmm_dist.bench.phases import begin_stages, check_has_phases
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import matmul_precision
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import build_recipe, choose_device, load_training_data, open_dataset
from diffmm_dist.training.teacher import teacher_of
from diffmm_dist.training.worker import prepare_process


def bench_epoch(config: Config, *, repeats: int, out: str) -> None:
    """Time whole epochs of a configuration, phase by phase, after one that is not timed; write a JSON file.

    Args:
        config: the run; nothing is written into its folder.
        repeats: epochs.
        out: the JSON file.

    Raises:
        UserError: the model has no phases.
    """
    check_has_phases(config)
    device = choose_device(config.cluster.device)
    prepare_process(config.cluster.threads_per_worker)
    dataset = open_dataset(config)
    epochs = Epochs(config, dataset, device)
    works = epoch_work(config, dataset, 1, {}, edges_read(config, epochs.data))
    phases = {
        phase.name: Variant(partial(epochs.run, phase), works[phase.name].flops, works[phase.name].memory_bytes)
        for phase in epochs.phases
    }
    operation = Operation("epoch", phases, parts=True)
    result = measure(operation, repeats=repeats, device=device)
    write_results(out, "epoch", [size_entry(config, dataset, {operation.name: result})], repeats=repeats, device=device)


def size_entry(config: Config, dataset: Dataset, operations: dict[str, Any]) -> dict[str, Any]:
    """Return the ``sizes`` entry of the JSON file for a configuration."""
    return {
        "size": config.data.path,
        "values": {
            "users": dataset.num_users,
            "items": dataset.num_items,
            "interactions": dataset.manifest.num_interactions("train"),
            "batch": config.train.batch_size,
        },
        "operations": operations,
    }


class Epochs:
    """A configuration's phases, ready to be run epoch after epoch as the training loop does.

    Attributes:
        phases: the phases.
        data: what they are trained with.
    """

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self._world = World.single(device)
        self._seed = config.run.seed
        self._precision = config.train.precision
        self.data = data = load_training_data(config, dataset, self._world)
        teacher = teacher_of(config, dataset, data.shard)
        recipe = build_recipe(config, data, device=device, teacher=teacher)
        begin_stages(recipe)
        self.phases: Sequence[Phase] = recipe.phases
        self._done = Counter[str]()

    def run(self, phase: Phase) -> None:
        """Run a phase of its next epoch."""
        context = PhaseContext(self._world, self._seed, self._done[phase.name])
        with matmul_precision(self._precision):
            for index in range(phase.begin(context)):
                phase.step(index)
        phase.drop_gradients()
        phase.finish()
        self._done[phase.name] += 1
