"""The estimate of memory beside what runs really need, over problems that differ in what their memory is for.

Every shape is trained in a process of its own, whose peak is compared with the estimate. A second process goes on from
the run's checkpoint and takes a few steps of each phase; before each phase freed memory is given back, so that the peak
of every phase is seen, where the run shows the largest alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.memory import peak_bytes
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData
from diffmm_dist.errors import UserError, closest
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.monitoring.log import logger
from diffmm_dist.parallel.group import run_group
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import matmul_precision
from diffmm_dist.preparation.synthetic import SyntheticSpec, generate
from diffmm_dist.preparation.synthetic_knowledge import KnowledgeSpec
from diffmm_dist.runs.checkpoint import Checkpoints
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.staging import scratch_folder
from diffmm_dist.training.build import build_evaluation, build_recipe, load_training_data, open_dataset
from diffmm_dist.training.clip import clipped
from diffmm_dist.training.estimate import Estimate, estimate, program_bytes
from diffmm_dist.training.restore import restore
from diffmm_dist.training.selection import Evaluation
from diffmm_dist.training.state import TrainState
from diffmm_dist.training.teacher import teacher_of
from diffmm_dist.training.worker import prepare_process, run_worker

_CONTRASTED = 128  # nodes of a batch where a shape does not say: all of a large one would take most of the time
_STEPS = 3  # of each phase, in the second process
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """A problem and how it is trained.

    Attributes:
        what: what most of its memory is for.
        users: U.
        items: I.
        interactions: of all splits.
        widths: columns of each modality's features.
        settings: by section.
        workers: processes; the peak is that of the largest.
        knowledge: of a knowledge graph, how many entities that are no items and about how many facts, if there is one.
    """

    what: str
    users: int
    items: int
    interactions: int
    widths: Sequence[int]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    workers: int = 1
    knowledge: tuple[int, int] | None = None


def _diffmm(hidden: Sequence[int], **sections: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return sections of a configuration, those of the model among them under their own names."""
    of_model = {name: sections.pop(name, {}) for name in ("diffusion", "denoiser", "contrast")}
    of_model["diffusion"] = {"denoiser_hidden_dims": hidden, **of_model["diffusion"]}
    of_model["contrast"] = {"contrastive_anchor": "main", "max_nodes": _CONTRASTED, **of_model["contrast"]}
    return {**sections, "model": {**sections.get("model", {}), **of_model}}


_LARGE_BATCH = {"batch_size": 50_000}
_MANY_USERS = partial(Shape, users=150_000, items=2_000, interactions=450_000, widths=(16,))
_MIDDLE = partial(Shape, users=3_000, items=20_000, interactions=100_000, widths=(32, 32))

SHAPES: dict[str, Shape] = {
    "demo": Shape("the program itself", 2_000, 1_000, 36_000, (64, 64), _diffmm([200])),
    "users": _MANY_USERS("rows of users", settings=_diffmm([64], train=_LARGE_BATCH)),
    "items": Shape("rows of items", 1_000, 120_000, 60_000, (16,), _diffmm([64], train=_LARGE_BATCH)),
    "interactions": Shape(
        "interactions", 40_000, 4_000, 2_000_000, (16,), _diffmm([32], train={"batch_size": 500_000})
    ),
    "wide features": Shape("features", 2_000, 30_000, 40_000, (4096,), _diffmm([32], train=_LARGE_BATCH)),
    "modalities": Shape("five modalities", 60_000, 20_000, 250_000, (32,) * 5, _diffmm([32], train=_LARGE_BATCH)),
    "five contrasts": Shape(
        "pairs of views",
        60_000,
        20_000,
        250_000,
        (32,) * 5,
        _diffmm([32], train=_LARGE_BATCH, contrast={"contrastive_anchor": "modal", "max_nodes": _CONTRASTED}),
    ),
    "wide hidden": _MIDDLE(
        "denoisers", settings=_diffmm([1000], train={"batch_size": 8192}, contrast={"max_nodes": None})
    ),
    "deep hidden": _MIDDLE("denoisers", settings=_diffmm([500, 1000, 1000, 500], train={"batch_size": 8192})),
    "direct": _MIDDLE(
        "outputs of a batch", settings=_diffmm([100], denoiser={"products": "direct"}, train={"batch_size": 8192})
    ),
    "gram": _MIDDLE(
        "noise of a batch", settings=_diffmm([400], denoiser={"products": "gram"}, train={"batch_size": 8192})
    ),
    "hidden noise": _MIDDLE(
        "covariance of noise", settings=_diffmm([1500], denoiser={"noise": "hidden"}, train={"batch_size": 8192})
    ),
    "bfloat16": _MIDDLE(
        "rounded weights", settings=_diffmm([1000], train={"batch_size": 8192, "precision": "bfloat16"})
    ),
    "normalized": _MIDDLE(
        "steps of the reverse chain",
        settings=_diffmm([100], diffusion={"normalize_input": True}, train={"batch_size": 1024}),
    ),
    "rebuild_topk": _MANY_USERS(
        "generated edges", settings=_diffmm([32], diffusion={"rebuild_topk": 20}, train=_LARGE_BATCH)
    ),
    "all edges": _MANY_USERS(
        "generated edges",
        settings=_diffmm([32], diffusion={"rebuild_topk": 20, "edge_keep_prob": 1.0}, train=_LARGE_BATCH),
    ),
    "contrast in batch": _MANY_USERS(
        "rows of users", settings=_diffmm([32], contrast={"negatives": "batch", "max_nodes": 1024}, train=_LARGE_BATCH)
    ),
    "no layer": _MANY_USERS("rows of users", settings=_diffmm([32], model={"num_layers": 0}, train=_LARGE_BATCH)),
    "three layers": _MANY_USERS("rows of users", settings=_diffmm([32], model={"num_layers": 3}, train=_LARGE_BATCH)),
    "lightgcn": _MANY_USERS(
        "rows of users",
        settings={"model": {"name": "lightgcn", "num_layers": 3, "embedding_dim": 128}, "train": _LARGE_BATCH},
    ),
    "long lists": _MANY_USERS(
        "lists of the evaluation",
        settings={
            "model": {"name": "lightgcn"},
            "train": {"batch_size": 200_000},
            "eval": {"k": [20, 500], "batch_size": 150_000},
        },
    ),
    "popularity": Shape("interactions", 40_000, 4_000, 5_000_000, (16,), {"model": {"name": "popularity"}}),
    "dgl": _MANY_USERS("rows of users", settings=_diffmm([32], graph={"kernel": "dgl"}, train=_LARGE_BATCH)),
    "two workers": _MANY_USERS("a half of it", settings=_diffmm([64], train=_LARGE_BATCH), workers=2),
    "facts": Shape(
        "facts and what attention makes of them",
        20_000,
        10_000,
        200_000,
        (16,),
        {
            "model": {
                "name": "diffkg",
                "diffusion": {"denoiser_hidden_dims": [32], "candidates": "neighbors", "rebuild_topk": 5},
                "contrast": {"negatives": "batch"},
            },
            "train": {"batch_size": 20_000},
        },
        knowledge=(40_000, 1_000_000),
    ),
    "entities": Shape(
        "a denoiser of entities", 1_000, 1_500, 40_000, (16,), {"model": {"name": "diffkg"}}, knowledge=(10_000, 30_000)
    ),
    "teacher": Shape(
        "a teacher's step",
        60_000,
        30_000,
        400_000,
        (256, 128),
        {"model": {"name": "promptmm", "embedding_dim": 64}, "train": {"batch_size": 40_000}},
    ),
    "student": Shape(
        "a student's step",
        100_000,
        40_000,
        400_000,
        (64,),
        {
            "model": {
                "name": "promptmm",
                "embedding_dim": 8,
                "student": {"embedding_dim": 128},
                "distillation": {"embedding_weight": 0, "train_prompt": False},
            },
            "train": {"batch_size": 100_000},
        },
    ),
    "two workers, denoisers": _MIDDLE("denoisers", settings=_diffmm([1000], train={"batch_size": 8192}), workers=2),
}


def bench_memory(names: Sequence[str], *, out: str) -> None:
    """Compare the estimate with measured peaks over some shapes, all by default; write a JSON file.

    Args:
        names: of shapes.
        out: the JSON file.

    Raises:
        UserError: there is no such shape.
    """
    for name in names:
        if name not in SHAPES:
            raise UserError(f"--shape {name} is none of {', '.join(SHAPES)}{closest(name, list(SHAPES))}")
    measured = {}
    for name in names or SHAPES:
        measured[name] = measure_shape(SHAPES[name])
        logger.info("%s: estimate over measured peak %.2f", name, measured[name]["ratio"])
        # Shapes take minutes each, so what was measured stays when the next one is interrupted.
        storage.write_json(out, {"command": command(), "machine": machine(), "memory": measured})


def measure_shape(shape: Shape) -> dict[str, Any]:
    """Train a shape and take each of its phases apart; return its entry of the JSON file."""
    with scratch_folder("diffmm-bench-") as folder:
        dataset = f"{folder}/dataset"
        widths = {f"modality_{number}": width for number, width in enumerate(shape.widths)}
        knowledge = None if shape.knowledge is None else KnowledgeSpec(*shape.knowledge)
        generate(SyntheticSpec(shape.users, shape.items, shape.interactions, widths, 1, knowledge), dataset)
        config = _config(shape, dataset, f"{folder}/run")
        whole = run_group(shape.workers, _run, config)
        parts = {} if shape.workers > 1 else run_group(1, _phases, config)[0]
    largest = max(whole, key=lambda worker: worker["measured"])
    return {
        "what": shape.what,
        "workers": shape.workers,
        "sizes": {"users": shape.users, "items": shape.items, "interactions": shape.interactions},
        "settings": shape.settings,
        **largest,
        "ratio": largest["estimated"] / largest["measured"],
        "phases": parts,
    }


def _config(shape: Shape, dataset: str, run: str) -> Config:
    tree: dict[str, dict[str, Any]] = {
        "data": {"path": dataset},
        "run": {"path": run},
        "graph": {"kernel": "csr"},
        "cluster": {"threads_per_worker": 1},
    }
    for section, values in {"train": {}, **shape.settings}.items():
        tree[section] = {**tree.get(section, {}), **values}
    tree["train"]["epochs"] = 2  # the second one starts with what the first leaves
    return Config.model_validate(tree)


def _estimated(config: Config) -> tuple[Config, Dataset, Estimate]:
    """Prepare this process as a worker does, and return what it would estimate."""
    prepare_process(config.cluster.threads_per_worker)
    dataset = open_dataset(config)
    used, _ = clipped(config, dataset.manifest)
    workers = World.current().size
    return used, dataset, estimate(used, dataset.manifest, num_workers=workers, program=program_bytes(_CPU))


def _run(config: Config) -> dict[str, Any]:
    """Train; return estimate and measured peak."""
    _, _, needs = _estimated(config)
    run_worker(config, stop_requested=lambda: False, show_progress=False)
    return {"estimated": needs.total, "measured": peak_bytes(), "phase": needs.peak, "parts": needs.phases[needs.peak]}


def _phases(config: Config) -> dict[str, dict[str, Any]]:
    """Go on from the run's checkpoint; return estimate and measured peak of each phase."""
    config, dataset, needs = _estimated(config)
    world = World.single()
    peaks: dict[str, int] = {}

    def during(name: str, call: Callable[[], Any]) -> Any:
        peak_bytes(reset=True)
        value = call()
        peaks[name] = peak_bytes()
        return value

    data, evaluation = during(
        "read", lambda: ((data := load_training_data(config, dataset, world)), build_evaluation(config, dataset, data))
    )
    state = during("resume", lambda: _resumed(config, dataset, data))
    for phase in state.phases:
        during(phase.name, partial(_step, phase, config, state.cursor.epoch))
    during("evaluate", partial(_evaluate, evaluation, state))
    return {
        name: {"estimated": sum(needs.phases[name].values()), "measured": peak, "parts": needs.phases[name]}
        for name, peak in peaks.items()
    }


def _resumed(config: Config, dataset: Dataset, data: TrainingData) -> TrainState:
    world = data.shard.world
    recipe = build_recipe(config, data, device=world.device, teacher=teacher_of(config, dataset, data.shard))
    state = TrainState(recipe, world)
    folder = RunFolder(config.run.path)
    restore(state, Checkpoints(folder.checkpoints, run=folder.run, keep=1, world=world), folder)
    return state


def _step(phase: Phase, config: Config, epoch: int) -> None:
    with matmul_precision(config.train.precision):
        for index in range(min(_STEPS, phase.begin(PhaseContext(World.single(), config.run.seed, epoch)))):
            phase.step(index)
    phase.drop_gradients()
    phase.finish()


def _evaluate(evaluation: Evaluation, state: TrainState) -> None:
    evaluation.measure(state.model, "test")
