"""Loading a teacher: the final embeddings of an earlier run, or of what one has exported, by whatever model."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from diffmm_dist import storage
from diffmm_dist.bundles import files as bundle_files
from diffmm_dist.data.checks import first_not_finite
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.models.recipe import TeacherTables
from diffmm_dist.monitoring.log import logger
from diffmm_dist.parallel.collectives import agree, all_reduce_max, any_worker
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.places import target_of
from diffmm_dist.precision import matmul_precision
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_folder import CONFIG
from diffmm_dist.training.allocator import give_back_freed_memory
from diffmm_dist.training.build import load_training_data, model_entry
from diffmm_dist.training.trained import SavedRun


def teacher_of(config: Config, dataset: Dataset, shard: Shard) -> Callable[[], TeacherTables] | None:
    """Return what reads the teacher that a configuration names, None where it names none.

    Nothing is read before it is called, which every worker does at the same time.
    """
    address = model_entry(config).teacher(config.model)
    if address is None:
        return None
    return partial(load_teacher, address, dataset, shard, student=config.run.path)


def check_teacher(config: Config, dataset: Dataset) -> None:
    """Refuse what cannot be the teacher of a new run, before it has a folder; one that goes on may do without.

    Args:
        config: the student's run.
        dataset: its dataset.

    Raises:
        UserError: as ``load_teacher`` says, but for what only its tables show.
    """
    address = model_entry(config).teacher(config.model)
    if address is None or storage.exists(storage.join(config.run.path, CONFIG)):
        return
    if _kind(address, config.run.path) == "run":
        saved = SavedRun.open(address, World.single())
        _check_dataset(address, saved.folder.identity()["dataset"], dataset)
        if saved.folder.result() is None:
            logger.warning(
                "teacher %s has not finished; if a later epoch of it becomes its best one, this run cannot go on with "
                "it after an interruption, so let it end, or export it and name the bundle",
                address,
            )
    else:
        _check_bundle(address, bundle_files.read_marker(address), dataset)


def load_teacher(address: str, dataset: Dataset, shard: Shard, *, student: str) -> TeacherTables:
    """Read the own rows of a teacher's tables; every worker calls it at the same time.

    Args:
        address: of a run or a bundle, a path or an address.
        dataset: the student's, on which the teacher must have been trained too.
        shard: the student's.
        student: the student's run folder.

    Raises:
        UserError: there is no teacher, or it has no best epoch of its last stage yet, is of another dataset, or not
            finite.
        DamagedError: a file of it is not what was written.
    """
    world = shard.world
    if agree(lambda: _kind(address, student), world) == "run":
        tables = _of_run(address, dataset, shard)
        give_back_freed_memory()
    else:
        tables = agree(lambda: _of_bundle(address, dataset, shard), world)
    agree(lambda: _check_finite(tables, shard), world)
    _check_same(tables, world)
    return tables


def _kind(address: str, student: str) -> Literal["run", "bundle"]:
    if target_of(address) == target_of(student):
        raise UserError(f"teacher {address} is the student's own run folder; set model.teacher to another run")
    if storage.exists(storage.join(address, CONFIG)):
        return "run"
    if storage.exists(storage.join(address, bundle_files.MARKER)):
        return "bundle"
    raise UserError(
        f"teacher {address} is neither a run folder (it has no {CONFIG}) nor a bundle (it has no "
        f"{bundle_files.MARKER}); set model.teacher to the run.path of a `train` command, or to what `export` has made"
    )


def _of_run(address: str, dataset: Dataset, shard: Shard) -> TeacherTables:
    """Build the teacher with the student's workers and shards, and keep its embeddings alone."""
    world = shard.world
    saved = SavedRun.open(address, world)
    agree(lambda: _check_dataset(address, saved.folder.identity()["dataset"], dataset), world)
    data = agree(lambda: load_training_data(saved.config, dataset, world), world)
    with matmul_precision("float32"):  # as it is evaluated and exported, whatever the phase that calls computes with
        users, items = (rows.detach().to(torch.float32) for rows in saved.model(dataset, data).embeddings())
    assert (len(users), len(items)) == (len(shard.user_ids), len(shard.own_item_ids))
    return TeacherTables(
        users.clone(),  # without what it may be a part of
        items.clone(),
        identity=f"run {saved.folder.run}, epoch {saved.best.epoch}",
        name=f"{saved.config.model.name} of {address}",
    )


def _of_bundle(address: str, dataset: Dataset, shard: Shard) -> TeacherTables:
    """Read the rows of a bundle, which lie in the order of ids."""
    marker = bundle_files.read_marker(address)
    _check_bundle(address, marker, dataset)
    wanted = {
        bundle_files.USERS: (dataset.num_users, shard.user_ids),
        bundle_files.ITEMS: (dataset.num_items, shard.own_item_ids),
    }
    users, items = (
        torch.from_numpy(bundle_files.read_embeddings(address, name, marker, total, ids.cpu().numpy())).to(
            shard.world.device
        )
        for name, (total, ids) in wanted.items()
    )
    return TeacherTables(
        users,
        items,
        identity=f"bundle {', '.join(marker['files'][name] for name in wanted)}",
        name=f"{marker['model']} of {address}",
    )


def _check_bundle(address: str, marker: bundle_files.Marker, dataset: Dataset) -> None:
    counts = {"users": (marker["num_users"], dataset.num_users), "items": (marker["num_items"], dataset.num_items)}
    for kind, (there, here) in counts.items():
        if there != here:
            raise UserError(
                f"teacher {address} has {there:,} {kind} but dataset {dataset.uri} has {here:,}; {_TRAIN_IT_HERE}"
            )
    _check_dataset(address, marker["dataset"], dataset)


_TRAIN_IT_HERE = "train the teacher on the student's dataset, or set data.path to the teacher's"


def _check_dataset(address: str, fingerprint: str, dataset: Dataset) -> None:
    own = dataset.manifest.fingerprint
    if fingerprint != own:
        raise UserError(
            f"teacher {address} was trained on a dataset of fingerprint {fingerprint} but dataset {dataset.uri} has "
            f"{own}; {_TRAIN_IT_HERE}"
        )


def _check_finite(tables: TeacherTables, shard: Shard) -> None:
    for kind, rows, ids in (("user", tables.users, shard.user_ids), ("item", tables.items, shard.own_item_ids)):
        found = first_not_finite(rows.cpu().numpy())
        if found is not None:
            row, what, count = found
            raise UserError(
                f"teacher {tables.name}: the embedding of {kind} {int(ids[row])} holds {what} ({count} such {kind}s); "
                "train the teacher again, or choose another model.teacher"
            )


def _check_same(tables: TeacherTables, world: World) -> None:
    """Refuse a teacher that has changed between one worker's look at it and another's."""
    number = float(int(hashlib.sha256(tables.identity.encode()).hexdigest()[:12], 16))
    if any_worker(all_reduce_max(number, world) != number, world):
        raise UserError(f"teacher {tables.name} was changed while it was read; let its training end, then start again")
