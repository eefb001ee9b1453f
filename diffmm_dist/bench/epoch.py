"""One training epoch, phase by phase. FLOP and bytes are those of ``bench gpus``: what one worker does (gpus.py)."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import count

from diffmm_dist.bench.gpus import epoch_work
from diffmm_dist.bench.operations import Operation, Variant, measure, write_results
from diffmm_dist.config.schema import Config
from diffmm_dist.errors import UserError
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import Precision, matmul_precision
from diffmm_dist.train.build import build_recipe, choose_device, load_training_data, open_dataset
from diffmm_dist.train.worker import prepare_process


def bench_epoch(config: Config, *, repeats: int, out: str) -> None:
    """Time whole epochs of a configuration, phase by phase, after one that is not timed; write a JSON file.

    Args:
        config: the run; nothing is written into its folder.
        repeats: epochs.
        out: the JSON file.

    Raises:
        UserError: the model is not DiffMM.
    """
    if config.model.name != "diffmm":
        raise UserError(f"bench epoch knows model.name=diffmm, not {config.model.name}")
    device = choose_device(config.cluster.device)
    prepare_process(config.cluster.threads_per_worker)
    dataset = open_dataset(config)
    world = World.single(device)
    recipe = build_recipe(config, load_training_data(config, dataset, world), device=device)
    works = epoch_work(config, dataset, 1, Counter())
    phases = {}
    for phase in recipe.phases:
        work = works[phase.name]
        call = partial(_run, phase, PhaseContext(world, config.run.seed, 0), count(), config.train.precision)
        phases[phase.name] = Variant(call, work.flops, work.memory_bytes)
    operation = Operation("epoch", phases, parts=True)
    entry = {
        "size": config.data.path,
        "values": {
            "users": dataset.num_users,
            "items": dataset.num_items,
            "interactions": dataset.manifest.num_interactions("train"),
            "batch": config.train.batch_size,
        },
        "operations": {operation.name: measure(operation, repeats=repeats, device=device)},
    }
    write_results(out, "epoch", [entry], repeats=repeats, device=device)


def _run(phase: Phase, context: PhaseContext, epochs: "count[int]", precision: Precision) -> None:
    """Run a phase of the next epoch, as the training loop does."""
    context = replace(context, epoch=next(epochs))
    with matmul_precision(precision):
        for index in range(phase.begin(context)):
            phase.step(index)
    if phase.optimizer is not None:
        phase.optimizer.zero_grad(set_to_none=True)
    phase.finish()
