"""Checkpoints: complete or absent, the newest few and the best of each stage kept.

A checkpoint is a folder written by torch.distributed.checkpoint (DCP), with an index of ours (checkpoint_index.py) and
``state.json`` for everything that is no tensor. That file comes last, and a folder without it counts for nothing; on a
disk the folder is written aside and renamed besides. Every worker writes the rows that it owns, and reads those that it
owns then, so the number of workers may change in between.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from diffmm_dist import storage
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.monitoring.log import logger
from diffmm_dist.parallel.collectives import agree, any_worker
from diffmm_dist.parallel.world import World
from diffmm_dist.records import RunId
from diffmm_dist.runs.checkpoint_index import index_sha256
from diffmm_dist.runs.checkpoint_names import (
    PARTIAL,
    STATE_FILE,
    all_checkpoints,
    checkpoint_name,
    complete_checkpoints,
    writer_of,
)
from diffmm_dist.runs.checkpoint_reading import Checkpoint, interruption_in, open_checkpoint, quiet, reason
from diffmm_dist.runs.checkpoint_shards import OwnerOf, shard, whole
from diffmm_dist.runs.checkpoint_storage import writer_to
from diffmm_dist.runs.progress import Cursor, Progress

Read = TypeVar("Read")


@dataclass(frozen=True)
class Writer:
    """What says whether a run may still be written to, the same on all workers.

    Attributes:
        number: of this process among all that have written to the run.
        check: raises a ``TakenOverError`` on every worker where another process writes now.
    """

    number: int = 0
    check: Callable[[], None] = lambda: None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are, on storage that all workers share: a path or an address.
        run: the run's id; checkpoints of others count as damaged.
        keep: how many of the newest to keep.
        world: the workers.
        writer: asked before anything is written.

    Attributes:
        damaged: checkpoints that were found so.
    """

    def __init__(self, folder: str, *, run: RunId, keep: int, world: World, writer: Writer | None = None) -> None:
        self._folder = folder
        self._run = run
        self._remote = storage.is_remote(folder)
        self._keep = keep
        self._world = world
        self._writer = writer or Writer()
        self.damaged: list[str] = []

    def name(self, cursor: Cursor) -> str:
        """Return the name of this writer's checkpoint from which a step comes next; names sort as steps do."""
        writer = self._writer.number if self._remote else None
        return checkpoint_name(cursor.epoch, cursor.phase, cursor.step, stage=cursor.stage, writer=writer)

    def names(self) -> list[str]:
        """Return the complete checkpoints that are not known to be damaged, the oldest first."""
        return [name for name in complete_checkpoints(self._folder) if name not in self.damaged]

    def _path(self, *parts: str) -> str:
        return storage.join(self._folder, *parts)

    def save(self, tensors: Mapping[str, Tensor], progress: Progress, owner_of: OwnerOf = whole) -> None:
        """Write a checkpoint, then remove the ones that need not be kept; every worker calls it at the same time.

        Args:
            tensors: all tensors of this worker.
            progress: everything else; its cursor gives the checkpoint its name, and those of best epochs stay.
            owner_of: says of which tensors a worker has its own rows only; by default of none.

        Raises:
            UserError: it cannot be written; the earlier checkpoints are untouched.
            TakenOverError: another process writes to the run now.
        """
        self._writer.check()
        name = self.name(progress.cursor)
        partial = self._path(name if self._remote else f"{PARTIAL}{name}")
        self._together(name, lambda: _clear(partial), undo=partial, on_first=True)
        self._together(name, lambda: self._write_tensors(partial, tensors, owner_of), undo=partial)
        self._writer.check()
        self._together(name, lambda: self._complete(partial, name, progress), undo=partial, on_first=True)
        self.damaged = [other for other in self.damaged if other != name]
        if self._world.is_first:
            with contextlib.suppress(UserError):  # what is not needed is only in the way, and goes with a later save
                self._remove_old(progress)

    def _together(self, name: str, action: Callable[[], object], *, undo: str, on_first: bool = False) -> None:
        """Do one step of a save on all workers, or on the first; if it fails on any, undo the save and raise on all."""
        failure: BaseException | None = None
        try:
            if self._world.is_first or not on_first:
                action()
        except (Exception, CheckpointException) as error:  # DCP's own is no Exception
            failure = error
        if failure is not None and interruption_in(failure) is not None:
            raise KeyboardInterrupt
        if any_worker(failure is not None, self._world):
            if self._world.is_first:
                with contextlib.suppress(UserError):
                    storage.remove_folder(undo)
            self._check_still_own()
            raise self._cannot_write(name, failure)

    def _check_still_own(self) -> None:
        """Say that another process has the run, if it has: it removes what this one writes, which fails for that."""
        with contextlib.suppress(UserError):  # it cannot be found out either
            self._writer.check()

    def _write_tensors(self, folder: str, tensors: Mapping[str, Tensor], owner_of: OwnerOf) -> None:
        alone = self._world.size == 1
        shards = dict(tensors)
        if not alone:
            shards = {name: shard(tensor, owner_of(name, tensor.shape)) for name, tensor in tensors.items()}
        with quiet():
            save_distributed(shards, storage_writer=writer_to(folder), no_dist=alone)

    def _complete(self, partial: str, name: str, progress: Progress) -> None:
        bound = {"run": self._run, "writer": self._writer.number, "index": index_sha256(partial)}
        state = {**asdict(progress), **bound}
        storage.write_record(storage.join(partial, STATE_FILE), state)
        if not self._remote:
            storage.remove_folder(self._path(name))  # a damaged one, which is not gone on from
            os.rename(partial, self._path(name))

    def _cannot_write(self, name: str, failure: BaseException | None) -> UserError:
        why = "another worker failed" if failure is None else reason(failure)
        try:
            last = self.names()[-1:] or ["none"]
        except UserError:  # the storage is gone altogether
            last = ["the one before"]
        error = UserError(
            f"cannot write the checkpoint {self._path(name)}: {why}; the last complete checkpoint is "
            f"{last[0]}; make room or give write access, then run the same command again"
        )
        error.__cause__ = failure
        return error

    def _remove_old(self, progress: Progress) -> None:
        kept = [name for name in self.names() if writer_of(name) <= self._writer.number][-self._keep :]
        kept += [best.checkpoint for best in (progress.best, *(ended.best for ended in progress.ended)) if best]
        for old in all_checkpoints(self._folder):
            if old not in kept and writer_of(old) <= self._writer.number:
                with contextlib.suppress(UserError):  # it is only in the way
                    storage.remove_folder(self._path(old), marker=STATE_FILE)

    def newest(self, read: Callable[[Checkpoint], Read]) -> tuple[str, Read] | None:
        """Read the newest checkpoint that is not damaged; every worker calls it at the same time and gets the same one.

        Those that are damaged are named in the log, do not count from here on, and go when the next one is saved.

        Args:
            read: what to read of a checkpoint.

        Returns:
            its name and what was read, None where there is no checkpoint.

        Raises:
            UserError: all are damaged, or one cannot be reached.
        """
        for name in reversed(self.names()):
            found = self.unless_damaged(lambda name=name: read(self.open(name)))  # type: ignore[misc]
            if not isinstance(found, DamagedError):
                return name, found
            self.damaged.append(name)
        if self.damaged:
            raise UserError(
                f"no checkpoint in {self._folder} can be read; restore one of them, or remove that folder to train "
                "from the beginning"
            )
        return None

    def unless_damaged(self, read: Callable[[], Read]) -> Read | DamagedError:
        """Read something of a checkpoint on all workers; where a file is damaged for any, say so and return what is."""

        def attempt() -> Read | DamagedError:
            try:
                return read()
            except DamagedError as error:
                logger.warning("%s", error)
                return error

        found = agree(attempt, self._world)
        if any_worker(isinstance(found, DamagedError), self._world) and not isinstance(found, DamagedError):
            return DamagedError("another worker has found a damaged file; its message says which")
        return found

    def open(self, name: str) -> Checkpoint:
        """Return one checkpoint of the run.

        Raises:
            DamagedError: it is damaged, or not what its name and place say.
            UserError: it cannot be reached.
        """
        return open_checkpoint(self._folder, name, run=self._run)


def _clear(partial: str) -> None:
    """Make an empty folder for a checkpoint: what is written into must be nobody else's."""
    storage.remove_folder(partial)
    if not storage.is_remote(partial):
        os.makedirs(partial)
