"""What a worker is going to need of memory, before it reads a byte, and whether this machine has it.

The peak is the largest phase's sum of what lives at that time: reading, resuming, each phase of training, evaluation.
Models say what they need (costs.py in each one's folder); docs/benchmarks/memory.md compares with measured runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

import torch

from diffmm_dist.config.section import changed
from diffmm_dist.data.schema import Manifest
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation import evaluator
from diffmm_dist.host_rows import BUFFER_BYTES
from diffmm_dist.models.common import costs
from diffmm_dist.models.common.costs import FLOAT, INT, ModelMemory, Parts, Share
from diffmm_dist.models.recipe import Needs
from diffmm_dist.monitoring.timing import status_kib
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import model_entry

GIB = 2**30
_LATER_BYTES = 96 << 20  # optimisers, TensorBoard, threads and their buffers: loaded after the estimate, measured
_DGL_BYTES = 48 << 20
_PROGRAM_BYTES = 320 << 20  # where the system does not tell what this process has
# Freed memory that is kept but does not fit the next tensors, as a share of what a phase allocates and frees again.
# Measured (docs/benchmarks/memory.md): glibc leaves a few bytes beside every aligned block in a cache of the thread, so
# that a freed block does not fit the next of its size; the more tables of one size a step goes through, the more.
_UNFIT_SHARES = {"recommend": 1.0, "evaluate": 0.25}
_UNFIT_SHARE = 0.4  # of the other phases
_READ_INTS = 8  # of an interaction while its rows are put together
_SCORE_ARRAYS = 1.25  # users x items
_LIST_BYTES, _HIT_BYTES = 100, 56  # users x k while lists merge; users x k of metrics
_LEAST_SHOWN = 0.005 * GIB


@dataclass(frozen=True)
class Estimate:
    """What a worker needs, in bytes.

    Attributes:
        phases: parts that live at the same time, by phase.
    """

    phases: Mapping[str, Parts]

    @property
    def totals(self) -> dict[str, int]:
        """Return the sum of each phase."""
        return {name: sum(parts.values()) for name, parts in self.phases.items()}

    @property
    def peak(self) -> str:
        """Return the phase that needs most."""
        return max(self.totals, key=self.totals.__getitem__)

    @property
    def total(self) -> int:
        """Return what it needs."""
        return self.totals[self.peak]

    def __str__(self) -> str:
        parts = sorted(self.phases[self.peak].items(), key=lambda part: -part[1])
        table = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts if size >= _LEAST_SHOWN)
        return f"{self.total / GIB:.2f} GiB in phase '{self.peak}' ({table})"


def program_bytes(device: torch.device) -> int:
    """Return what this process holds already: its libraries; on a GPU what torch has taken of it."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        return status_kib("VmRSS") * 1024
    except (OSError, StopIteration):  # not Linux
        return _PROGRAM_BYTES


def estimate(
    config: Config,
    manifest: Manifest,
    *,
    num_workers: int,
    program: int = _PROGRAM_BYTES,
    times: int = 1,
    on_gpu: bool = False,
) -> Estimate:
    """Return what a worker needs.

    Args:
        config: the run, clipped to the data (clip.py).
        manifest: of the dataset.
        num_workers: W.
        program: what the process holds before it reads the data.
        times: how many times as large as the dataset the data are.
        on_gpu: what its GPU must hold; features may lie in main memory then.
    """
    needs = needs_of(config, manifest, num_workers=num_workers, times=times)
    share, memory = needs.share, model_entry(config).memory(config.model, needs)
    if on_gpu and config.data.features_on == "host":
        memory = replace(memory, kept=_without_features(memory.kept))
    features = {name: size for name, size in memory.kept.items() if name == "features"}
    reading = {"interactions": (share.interactions + share.held_out) * _READ_INTS * INT}
    phases = {
        "read": costs.largest(reading, features | {"interactions": costs.interactions(share)} | memory.reading),
        "resume": memory.kept | {"checkpoint": memory.trained + 2 * memory.largest},
        **{name: _added(memory.kept, parts) for name, parts in memory.phases.items()},
        "evaluate": _added(
            memory.kept, costs.largest({"embeddings": memory.embedding}, _ranking(config, share, memory))
        ),
    }
    own = program + _LATER_BYTES + (_DGL_BYTES if _may_use_dgl(config) else 0)
    kept = {name: sum((parts if name == "read" else memory.kept).values()) for name, parts in phases.items()}
    return Estimate({name: _with_program(name, parts, own, kept[name]) for name, parts in phases.items()})


def _without_features(kept: Parts) -> Parts:
    """Return the parts with the buffers that features in main memory come through."""
    return {name: min(size, BUFFER_BYTES) if name == "features" else size for name, size in kept.items()}


def _added(kept: Parts, more: Parts) -> Parts:
    """Return both, parts of the same name added up."""
    return {
        name: kept.get(name, 0) + more.get(name, 0) for name in [*kept, *(name for name in more if name not in kept)]
    }


def _with_program(phase: str, parts: Parts, program: int, kept: int) -> Parts:
    """Return the parts with the program, and with what the allocator keeps and cannot use."""
    freed = sum(parts.values()) - kept
    unfit = int(freed * _UNFIT_SHARES.get(phase, _UNFIT_SHARE))
    return {"program": program, **parts, "kept by the allocator": unfit}


def _may_use_dgl(config: Config) -> bool:
    return config.graph.kernel != "csr" and model_entry(config).propagates


def _ranking(config: Config, share: Share, memory: ModelMemory) -> Parts:
    """Return what the ranking of all items for the own users holds on top."""
    block = min(share.items, evaluator.ITEMS_PER_BLOCK)
    batch = min(config.eval.batch_size, share.users)
    ranked = min(batch, max(1, evaluator.SCORES // max(1, block)))
    length = min(max(config.eval.k), share.num_items)
    rows = (share.users + (3 if share.num_workers > 1 else 2) * share.items) * memory.width * FLOAT
    masks = (share.interactions + share.held_out) * 4 * INT + share.users * 4 * INT + share.num_items * INT
    lists = share.users * length * (FLOAT + INT) + ranked * min(2 * length, share.items + length) * _LIST_BYTES
    lists += batch * length * _HIT_BYTES + len(config.eval.k) * share.num_items * FLOAT
    return {"embeddings": rows, "masks": masks, "scores": int(ranked * block * _SCORE_ARRAYS * FLOAT), "lists": lists}


def needs_of(config: Config, manifest: Manifest, *, num_workers: int, times: int = 1) -> Needs:
    """Return what the costs of the configured model depend on.

    Args:
        config: the run.
        manifest: of the dataset.
        num_workers: W.
        times: how many times as many users, items and interactions there are as in the dataset.
    """
    share = Share.even(
        num_users=times * manifest.num_users,
        num_items=times * manifest.num_items,
        num_interactions=times * manifest.num_interactions("train"),
        held_out=times * (manifest.num_interactions("valid") + manifest.num_interactions("test")),
        num_workers=num_workers,
        counts={name: times * axis.count for name, axis in manifest.axes.items()},
        table_rows={name: times * sum(file.rows for file in table.files) for name, table in manifest.tables.items()},
    )
    by_columns = config.graph.layout == "columns" and num_workers > 1
    used = config.data.modalities or tuple(manifest.modalities)  # names that are none are refused when data are read
    return Needs(
        replace(share, halo=0) if by_columns else share,
        widths={name: entry.width for name, entry in manifest.modalities.items() if name in used},
        batch_size=config.train.batch_size,
        rounded=config.train.precision == "bfloat16",
        dgl=_may_use_dgl(config),
        by_columns=by_columns,
        propagate_every=config.train.propagate_every,
    )


def check_memory(
    config: Config,
    manifest: Manifest,
    *,
    num_workers: int,
    workers_here: int,
    available: int,
    program: int,
    on_gpu: bool = False,
) -> str:
    """Return a line for the log that compares the estimate with what there is.

    Args:
        config: the run, clipped to the data.
        manifest: of the dataset.
        num_workers: W.
        workers_here: workers that share this machine.
        available: bytes that processes can still get here.
        program: what each worker holds already.
        on_gpu: ``available`` is of a GPU.

    Raises:
        UserError: the workers of this machine cannot fit; it shows the largest phase, and what to lower.
    """
    needs = estimate(config, manifest, num_workers=num_workers, program=program, on_gpu=on_gpu)
    room = available + workers_here * program  # the estimate counts what they have already
    said = f"a worker is estimated to need {needs}"
    if needs.total * workers_here <= room:
        return f"{said}; {workers_here} here, {room / GIB:.2f} GiB available"
    lower = [
        f"{setting} needs {saved / GIB:.2f} GiB of the {needs.total / GIB:.2f}"
        for setting, saved in savings(config, manifest, num_workers=num_workers, program=program, on_gpu=on_gpu)
    ]
    advice = f"lower what it takes ({'; '.join(lower)})" if lower else "the data alone take that"
    raise UserError(
        f"{said}; {workers_here} on this machine do not fit the {room / GIB:.2f} GiB it has: {advice}, or use more "
        "machines"
    )


def savings(
    config: Config, manifest: Manifest, *, num_workers: int, program: int, on_gpu: bool = False
) -> list[tuple[str, int]]:
    """Return the settings whose smallest value would save something worth it, those that save most first.

    Returns:
        ``section.key=value`` and the bytes that the peak would fall by.
    """
    total = partial(_total, manifest, num_workers=num_workers, program=program, on_gpu=on_gpu)
    whole, saved = total(config), []
    for setting, smaller in _smaller(config, on_gpu=on_gpu):
        less = whole - total(smaller)
        if less >= _LEAST_SAVED * whole:
            saved.append((setting, less))
    return sorted(saved, key=lambda entry: -entry[1])


_LEAST_SAVED = 0.02


def _total(manifest: Manifest, config: Config, *, num_workers: int, program: int, on_gpu: bool) -> int:
    return estimate(config, manifest, num_workers=num_workers, program=program, on_gpu=on_gpu).total


def _smaller(config: Config, *, on_gpu: bool) -> Iterator[tuple[str, Config]]:
    """Yield each setting that sizes something, as text, and the configuration with its smallest value."""
    of_model = model_entry(config).smallest(config.model)
    smallest = {f"model.{key}": value for key, value in of_model.items()}
    smallest |= {"train.batch_size": 1, "eval.batch_size": 1, "eval.k": (1,)}
    if on_gpu:
        smallest["data.features_on"] = "host"
    for key, value in smallest.items():
        before = attrgetter(key)(config)
        if before != value:
            yield f"{key}={list(before) if isinstance(before, tuple) else before}", changed(config, {key: value})
