"""How the cost of a step grows with each size of a problem: sizes doubled one by one, exponents fitted, plots drawn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import linear_regression, median
from typing import Any

import torch

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.memory import extra_mib
from diffmm_dist.bench.phases import begin_stages, check_has_phases, settle
from diffmm_dist.bench.plots import pyplot, save
from diffmm_dist.bench.problems import normal_rows, power_law_knowledge, power_law_rows
from diffmm_dist.config.section import changed
from diffmm_dist.data.knowledge import ENTITIES
from diffmm_dist.data.training import TrainingData
from diffmm_dist.evaluation.evaluator import rank_items
from diffmm_dist.models.base import PhaseContext
from diffmm_dist.models.recipe import TeacherTables
from diffmm_dist.monitoring.timing import take_turns
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import AllRows, Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import build_recipe, model_entry, reads_features
from diffmm_dist.training.worker import prepare_process

_FEATURE_WIDTH = 32
_TEACHER_WIDTH = 64
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class GrowthSize:
    """Sizes of a problem; interactions and facts are drawn, and a few come twice and count once.

    Entities are those that are no items.
    """

    users: int = 8192
    items: int = 4096
    interactions: int = 65_536
    entities: int = 4096
    facts: int = 32_768
    modalities: int = 1
    hidden: int = 128


FACTORS: dict[str, tuple[int, ...]] = {
    "users": (1, 2, 4, 8, 16),
    "items": (1, 2, 4, 8, 16),
    "interactions": (1, 2, 4, 8, 16),
    "entities": (1, 2, 4, 8, 16),
    "facts": (1, 2, 4, 8, 16),
    "modalities": (1, 2, 3, 4),
    "hidden": (1, 2, 4, 8),
}


def bench_growth(
    config: Config, out: str, *, repeats: int, base: GrowthSize | None = None, plot: str | None = None
) -> None:
    """Time a step of each phase, and the ranking of a batch of users, while one size at a time grows; write JSON.

    The values of a size take turns. An exponent is the slope of a line through the logarithms: 1 is linear.

    Args:
        config: batch size, embeddings, layers and everything else that stays.
        out: the JSON file.
        repeats: steps to time at each size, after one that is not.
        base: the sizes from which each grows.
        plot: the SVG file of the plots, if wanted; needs matplotlib.

    Raises:
        UserError: matplotlib is not there, or the model has no phases.
    """
    check_has_phases(config)
    if plot is not None:
        pyplot()
    prepare_process(config.cluster.threads_per_worker)
    base = base or GrowthSize()
    growth = {}
    for name, factors in _factors(config).items():
        sizes = [replace(base, **{name: factor * getattr(base, name)}) for factor in factors]
        growth[name] = _measured(config, name, sizes, repeats)
    document = {
        "command": command(),
        "machine": machine(),
        "config": config.model_dump(mode="json"),
        "base": asdict(base),
        "growth": growth,
    }
    storage.write_json(out, document)
    if plot is not None:
        _draw(growth, plot)


def _factors(config: Config) -> Mapping[str, Sequence[int]]:
    """Return the factors of those sizes that the model has."""
    entry = model_entry(config)
    read = {"users", "items", "interactions"} | set(entry.measures.sizes)
    read |= {"modalities"} if reads_features(config) else set()
    read |= {"entities", "facts"} if entry.reads_knowledge else set()
    return {name: factors for name, factors in FACTORS.items() if name in read}


def _measured(config: Config, name: str, sizes: list[GrowthSize], repeats: int) -> dict[str, Any]:
    """Return the values of one size, and for each operation seconds and memory at each of them and the exponents."""
    problems = {str(getattr(size, name)): operations(config, size) for size in sizes}
    result: dict[str, Any] = {"values": [getattr(size, name) for size in sizes], "operations": {}}
    for operation in next(iter(problems.values())):
        calls = {value: of_size[operation] for value, of_size in problems.items()}
        seconds = [median(times) for times in take_turns(calls, repeats=repeats).values()]
        memory = [extra_mib(call, _CPU) for call in calls.values()]
        result["operations"][operation] = {
            "seconds": seconds,
            "extra_mib": memory,
            "exponent": exponent(result["values"], seconds),
            "memory_exponent": _memory_exponent(result["values"], memory),
        }
    return result


def _memory_exponent(values: list[int], memory: Sequence[float | None]) -> float | None:
    """Return the exponent, or None where memory cannot be measured or there is a value that needs none."""
    return None if not all(memory) else exponent(values, [mib for mib in memory if mib is not None])


def exponent(values: list[int], costs: list[float]) -> float:
    """Return b of the power law a value^b that fits the costs best, in logarithms."""
    return linear_regression([math.log(value) for value in values], [math.log(cost) for cost in costs]).slope


def operations(config: Config, size: GrowthSize) -> Mapping[str, Callable[[], object]]:
    """Return one step of each phase, and ``rank``, for a random problem of a size."""
    world = World.single()
    shard = Shard.whole(size.users, size.items, world=world)
    rows = power_law_rows(size.users, size.items, size.interactions, _CPU)
    features = {
        f"modality_{index}": normal_rows(f"features {index}", size.items, _FEATURE_WIDTH, _CPU)
        for index in range(size.modalities)
    }
    knowledge = None
    if model_entry(config).reads_knowledge:
        entities = AllRows(Ownership.even(size.entities, rank=0, size=1), torch.arange(size.entities))
        shard = replace(shard, further={ENTITIES: entities})
        knowledge = power_law_knowledge(shard.all_items, entities, size.facts)
    data = TrainingData(shard, rows, rows.num_entries, features, knowledge)
    sizes = model_entry(config).measures.sizes
    own = {f"model.{key}": value(getattr(size, name)) for name, (key, value) in sizes.items()}
    teacher = None if model_entry(config).teacher(config.model) is None else partial(_random_teacher, size)
    recipe = build_recipe(changed(config, own), data, device=_CPU, teacher=teacher)
    begin_stages(recipe)
    settle(config, recipe.model)
    calls: dict[str, Callable[[], object]] = {}
    for phase in recipe.phases:
        phase.begin(PhaseContext(world, config.run.seed, 0))
        calls[phase.name] = partial(phase.step, 0)
    users, items = recipe.model.embeddings()
    batch = torch.arange(min(config.eval.batch_size, size.users))
    calls["rank"] = lambda: list(
        rank_items(users, items, batch, masked=[rows], k=max(config.eval.k), batch_size=config.eval.batch_size)
    )
    return calls


def _random_teacher(size: GrowthSize) -> TeacherTables:
    """Return what a model is distilled from that needs a teacher: what a step costs does not depend on the values."""
    users, items = (
        normal_rows(f"teacher's {name}", rows, _TEACHER_WIDTH, _CPU)
        for name, rows in (("users", size.users), ("items", size.items))
    )
    return TeacherTables(users, items, identity="random", name="random tables")


def _draw(growth: Mapping[str, Any], path: str) -> None:
    """Draw seconds and memory against each size on logarithmic axes."""
    plt = pyplot()
    figure, rows = plt.subplots(2, len(growth), figsize=(4 * len(growth), 8), sharey="row", layout="constrained")
    for (above, below), (name, measured) in zip(rows.T, growth.items(), strict=True):
        _draw_panel(above, name, measured, cost="seconds", slope="exponent")
        _draw_panel(below, name, measured, cost="extra_mib", slope="memory_exponent")
    for panel, label in zip(rows[:, 0], ("seconds per step", "MiB per step"), strict=True):
        panel.set_ylabel(label)
    save(figure, path)


def _draw_panel(panel: Any, name: str, measured: Mapping[str, Any], *, cost: str, slope: str) -> None:
    values = measured["values"]
    for operation, result in measured["operations"].items():
        if result[slope] is not None:
            panel.loglog(values, result[cost], marker="o", label=f"{operation}, exponent {result[slope]:.2f}")
    panel.set_xticks(values, [f"{value:,}" for value in values])
    panel.minorticks_off()
    panel.set_xlabel(name)
    if panel.lines:
        panel.legend(fontsize="small")
