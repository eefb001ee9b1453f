"""What the steps of each phase spend their time on, operator by operator, as text."""

import json
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.phases import begin_stages, check_has_phases, settle
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import matmul_precision
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import build_recipe, choose_device, load_training_data, open_dataset
from diffmm_dist.training.teacher import teacher_of
from diffmm_dist.training.worker import prepare_process

_OPERATORS = 15  # of each phase that are listed


def bench_profile(config: Config, *, num_steps: int, out: str) -> str:
    """Profile a few steps of each phase of the first epoch; write and return the text.

    Args:
        config: the run; nothing is written into its folder.
        num_steps: steps of each phase, after one that is not counted.
        out: the text file.

    Raises:
        UserError: the model has no phases.
    """
    check_has_phases(config)
    prepare_process(config.cluster.threads_per_worker)
    world = World.single(choose_device(config.cluster.device))
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, world)
    recipe = build_recipe(config, data, device=world.device, teacher=teacher_of(config, dataset, data.shard))
    begin_stages(recipe)
    context = PhaseContext(world, config.run.seed, 0)
    lines = [f"command: {command()}", f"machine: {json.dumps(machine())}"]
    for phase in recipe.phases:
        settle(config, recipe.model)
        with matmul_precision(config.train.precision):
            lines += ["", *_table(phase, context, num_steps)]
    text = "\n".join(lines) + "\n"
    storage.write_bytes(out, text.encode())
    return text


def _table(phase: Phase, context: PhaseContext, num_steps: int) -> Iterator[str]:
    """Yield the lines of one phase: each operator's calls per step, its own time and its share."""
    total = phase.begin(context)
    phase.step(0)
    steps = range(1, min(num_steps + 1, total)) or range(1)  # a phase of one step repeats it
    on_gpu = context.world.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for index in steps:
            phase.step(index)
        if on_gpu:
            torch.cuda.synchronize()
    own_time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operators = [(event.key, event.count, getattr(event, own_time)) for event in profiler.key_averages()]
    operators.sort(key=lambda operator: -operator[2])
    whole = sum(microseconds for *_, microseconds in operators) or 1
    count = max(1, len(steps))
    yield f"{phase.name}: {whole / count / 1e3:.1f} ms per step, {total} steps per epoch"
    yield f"{'operator':44} {'calls per step':>14} {'ms per step':>12} {'share':>6}"
    for name, calls, microseconds in operators[:_OPERATORS]:
        yield f"{name[:44]:44} {calls / count:14.1f} {microseconds / count / 1e3:12.2f} {microseconds / whole:6.1%}"
