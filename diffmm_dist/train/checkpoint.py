"""Checkpoints: complete or absent, the newest few and the best kept.

A checkpoint is a folder written by torch.distributed.checkpoint (DCP), with an index of ours (checkpoint_index.py) and
``state.json`` for everything that is no tensor. That file comes last, and a folder without it counts for nothing; on a
disk the folder is written aside and renamed besides. Every worker writes the rows that it owns, and reads those that it
owns then, so the number of workers may change in between.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from typing_extensions import TypedDict

from diffmm_dist import storage
from diffmm_dist.checksums import Checksum
from diffmm_dist.errors import DamagedError, StoppedEarlyError, UserError, one_line
from diffmm_dist.monitoring.log import logger
from diffmm_dist.parallel.collectives import agree, any_worker
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World
from diffmm_dist.train.checkpoint_index import REMEDY, index_sha256
from diffmm_dist.train.checkpoint_names import (
    PARTIAL,
    STATE_FILE,
    all_checkpoints,
    checkpoint_name,
    complete_checkpoints,
    writer_of,
)
from diffmm_dist.train.checkpoint_storage import reader_of, writer_to
from diffmm_dist.train.state import Progress

_LOST = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
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
        folder: where they are, on storage that all workers share: a path or an s3:// address.
        keep: how many of the newest to keep.
        world: the workers.
        writer: asked before anything is written.

    Attributes:
        damaged: checkpoints that were found so.
    """

    def __init__(self, folder: str, *, keep: int, world: World, writer: Writer | None = None) -> None:
        self._folder = folder
        self._remote = storage.is_remote(folder)
        self._keep = keep
        self._world = world
        self._writer = writer or Writer()
        self.damaged: list[str] = []

    def name(self, epoch: int, phase: int = 0, step: int = 0) -> str:
        """Return the name of this writer's checkpoint from which this step comes next; names sort as steps do."""
        return checkpoint_name(epoch, phase, step, writer=self._writer.number if self._remote else None)

    def names(self) -> list[str]:
        """Return the complete checkpoints that are not known to be damaged, the oldest first."""
        return [name for name in complete_checkpoints(self._folder) if name not in self.damaged]

    def _path(self, *parts: str) -> str:
        return storage.join(self._folder, *parts)

    def save(
        self, name: str, tensors: Mapping[str, Tensor], progress: Progress, owners: Mapping[str, Ownership]
    ) -> None:
        """Write a checkpoint, then remove the ones that need not be kept; every worker calls it at the same time.

        Args:
            name: from ``name``.
            tensors: all tensors of this worker.
            progress: everything else; the checkpoint of its best epoch stays.
            owners: for each tensor of which a worker has its own rows only, who owns which.

        Raises:
            UserError: it cannot be written; the earlier checkpoints are untouched.
            TakenOverError: another process writes to the run now.
        """
        self._writer.check()
        partial = self._path(name if self._remote else f"{PARTIAL}{name}")
        self._together(name, lambda: storage.remove_folder(partial), undo=partial, on_first=True)
        self._together(name, lambda: self._write_tensors(partial, tensors, owners), undo=partial)
        self._writer.check()
        self._together(name, lambda: self._complete(partial, name, progress), undo=partial, on_first=True)
        self.damaged = [other for other in self.damaged if other != name]
        if self._world.is_first:
            self._remove_old(progress)

    def _together(self, name: str, action: Callable[[], object], *, undo: str, on_first: bool = False) -> None:
        """Do one step of a save on all workers, or on the first; if it fails on any, undo the save and raise on all."""
        failure: BaseException | None = None
        try:
            if self._world.is_first or not on_first:
                action()
        except (Exception, CheckpointException) as error:  # DCP's own is no Exception
            failure = error
        if failure is not None and _was_interrupted(failure):
            raise KeyboardInterrupt
        if any_worker(failure is not None, self._world):
            if self._world.is_first:
                with contextlib.suppress(UserError):
                    storage.remove_folder(undo)
            raise self._cannot_write(name, failure)

    def _write_tensors(self, folder: str, tensors: Mapping[str, Tensor], owners: Mapping[str, Ownership]) -> None:
        alone = self._world.size == 1
        shards = dict(tensors) if alone else {key: _shard(value, owners.get(key)) for key, value in tensors.items()}
        with _quiet():
            save_distributed(shards, storage_writer=writer_to(folder), no_dist=alone)

    def _complete(self, partial: str, name: str, progress: Progress) -> None:
        state = {**asdict(progress), "writer": self._writer.number, "index": index_sha256(partial)}
        storage.write_record(storage.join(partial, STATE_FILE), state)
        if not self._remote:
            storage.remove_folder(self._path(name))  # a damaged one, which is not gone on from
            os.rename(partial, self._path(name))

    def _cannot_write(self, name: str, failure: BaseException | None) -> UserError:
        reason = "another worker failed" if failure is None else _reason(failure)
        try:
            last = self.names()[-1:] or ["none"]
        except UserError:  # the storage is gone altogether
            last = ["the one before"]
        error = UserError(
            f"cannot write the checkpoint {self._path(name)}: {reason}; the last complete checkpoint is "
            f"{last[0]}; make room or give write access, then run the same command again"
        )
        error.__cause__ = failure
        return error

    def _remove_old(self, progress: Progress) -> None:
        kept = [name for name in self.names() if writer_of(name) <= self._writer.number][-self._keep :]
        if progress.best is not None:
            kept.append(progress.best.checkpoint)
        for old in all_checkpoints(self._folder):
            if old not in kept and writer_of(old) <= self._writer.number:
                with contextlib.suppress(UserError):  # it is only in the way
                    storage.remove_folder(self._path(old), marker=STATE_FILE)

    def newest(self, read: Callable[[str], Read]) -> tuple[str, Read] | None:
        """Read the newest checkpoint that is not damaged; every worker calls it at the same time and gets the same one.

        Those that are damaged are named in the log, do not count from here on, and go when the next one is saved.

        Args:
            read: what to read of a checkpoint, by its name.

        Returns:
            its name and what was read, None where there is no checkpoint.

        Raises:
            UserError: all are damaged, or one cannot be reached.
        """
        for name in reversed(self.names()):
            found = self.unless_damaged(lambda name=name: read(name))  # type: ignore[misc]
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

    def progress(self, name: str) -> Progress:
        """Return what is no tensor.

        Raises:
            DamagedError: the checkpoint is damaged.
            UserError: it cannot be reached.
        """
        return self._state(name, Progress)

    def _state(self, name: str, kind: type[Read]) -> Read:
        """Return a part of what stands in the state."""
        with _explained(self._path(name)):
            part: Read = storage.read_record(self._path(name, STATE_FILE), kind, remedy=REMEDY)
            return part

    def tensors(
        self, name: str, owners: Mapping[str, Ownership], *, wanted: Callable[[str], bool] = lambda _: True
    ) -> dict[str, Tensor]:
        """Return the tensors whose names are wanted, each compared with its checksum.

        Args:
            name: the checkpoint.
            owners: for each tensor of which this worker wants its own rows only, who owns which.
            wanted: whether a tensor is wanted, by its name.

        Raises:
            DamagedError: the checkpoint is damaged.
            UserError: it cannot be reached, or holds something other than tensors.
        """
        path = self._path(name)
        index = self._state(name, _Pointer)["index"]
        with _explained(path):
            reader = reader_of(path, index_sha256=index)
            entries = reader.read_metadata().state_dict_metadata
            tensors = {key: _empty(entry, owners.get(key)) for key, entry in entries.items() if wanted(key)}
            with _quiet():
                # Without a process group: what a worker reads does not depend on the others.
                load_distributed(tensors, storage_reader=reader, no_dist=True)
        return {key: tensor.local if isinstance(tensor, _RowShard) else tensor for key, tensor in tensors.items()}


class _Pointer(TypedDict):
    """The part of state.json that says which index belongs to it."""

    index: Checksum


class _RowShard(Tensor):
    """A worker's own rows of a table, in the form in which torch.distributed.checkpoint asks for its part of a tensor.

    Attributes:
        local: the own rows.
        ownership: of the table's rows.
    """

    local: Tensor
    ownership: Ownership

    def size(self, dim: Any = None) -> Any:
        """Return the size of the whole table."""
        return torch.Size([self.ownership.total, *self.local.shape[1:]])

    def _chunk(self) -> ChunkStorageMetadata:
        start = self.ownership.own.start
        return ChunkStorageMetadata(torch.Size([start, *(0 for _ in self.local.shape[1:])]), self.local.shape)

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        if not self.local.numel():
            return []
        chunk = self._chunk()
        data = TensorWriteData(chunk, TensorProperties.create_from_tensor(self.local), self.size())
        return [WriteItem(MetadataIndex(fqn, chunk.offsets), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()] if self.local.numel() else []

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        return self.local


def _shard(local: Tensor, ownership: Ownership | None) -> Tensor:
    """Return a worker's own rows of a table as what they are to DCP; a replicated tensor stays one."""
    if ownership is None:
        return local
    shard = Tensor._make_subclass(_RowShard, local.detach())
    assert isinstance(shard, _RowShard)
    shard.local, shard.ownership = local.detach(), ownership
    return shard


def _empty(entry: Any, ownership: Ownership | None) -> Tensor:
    assert isinstance(entry, TensorStorageMetadata)
    if ownership is None:
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    if entry.size[0] != ownership.total:
        raise ValueError(f"it holds {entry.size[0]} rows of a table of {ownership.total}")
    return _shard(torch.empty(ownership.own.size, *entry.size[1:], dtype=entry.properties.dtype), ownership)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence DCP's warning that no process group means a single process; it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        chatty = logging.getLogger("torch.distributed.checkpoint")
        level = chatty.level
        chatty.setLevel(logging.ERROR)
        try:
            yield
        finally:
            chatty.setLevel(level)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what reading a checkpoint raises into one sentence.

    It is a ``DamagedError`` where another checkpoint may be better. A storage that cannot be reached is none, nor is
    anything that the checksums do not explain.
    """
    try:
        yield
    except (Exception, CheckpointException) as wrapped:  # DCP's own is no Exception
        error = _inner(wrapped)
        if isinstance(error, DamagedError):
            raise error from None
        refused = _system_error(error)
        kind = DamagedError if isinstance(refused, _LOST) else UserError
        if isinstance(error, UserError):
            raise error if kind is UserError else kind(f"{error}; {REMEDY}") from error.__cause__
        place = getattr(refused, "filename", None) or f"the checkpoint {path}"
        raise kind(f"{place} cannot be read: {_reason(error)}; {REMEDY}") from error


def _inner(error: BaseException) -> BaseException:
    """Return an exception from inside DCP's wrapping, which holds those of each rank with their tracebacks."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the operating system's error behind another one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _was_interrupted(failure: BaseException) -> bool:
    """Tell a second Ctrl-C, which DCP wraps as it does any failure of its own."""
    if isinstance(failure, CheckpointException):
        return any(isinstance(error, (KeyboardInterrupt, StoppedEarlyError)) for error, _ in failure.failures.values())
    return False


def _reason(error: BaseException) -> str:
    """Return the operating system's reason, from inside DCP's wrapping, or the exception's text."""
    error = _inner(error)
    return one_line(_system_error(error) or error)
