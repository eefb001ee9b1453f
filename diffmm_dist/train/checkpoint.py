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
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.checkpoint.storage import WriteResult

from diffmm_dist import s3, storage
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.parallel.collectives import any_worker
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World
from diffmm_dist.train.checkpoint_index import read_index, write_index
from diffmm_dist.train.state import Progress

STATE_FILE = "state.json"
_PREFIX = "epoch-"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are, on storage that all workers share: a path or an s3:// address.
        keep: how many of the newest to keep.
        world: the workers.
    """

    def __init__(self, folder: str, *, keep: int, world: World) -> None:
        self._folder = folder
        self._remote = storage.is_remote(folder)
        self._keep = keep
        self._world = world

    @staticmethod
    def name(epoch: int, phase: int = 0, step: int = 0) -> str:
        """Return the name of the checkpoint from which this step comes next; names sort as steps do."""
        inside = f"-phase-{phase}-step-{step:07d}" if phase or step else ""
        return f"{_PREFIX}{epoch:05d}{inside}"

    def names(self) -> list[str]:
        """Return the complete checkpoints, the oldest first."""
        names = [name for name in storage.list_names(self._folder) if name.startswith(_PREFIX)]
        return [name for name in names if not self._remote or storage.exists(self._path(name, STATE_FILE))]

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
        """
        partial = self._path(name if self._remote else f"partial-{name}")
        self._together(name, lambda: storage.remove_folder(partial), undo=partial, on_first=True)
        self._together(name, lambda: self._write_tensors(partial, tensors, owners), undo=partial)
        self._together(name, lambda: self._complete(partial, name, progress), undo=partial, on_first=True)
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
        if any_worker(failure is not None, self._world):
            if self._world.is_first:
                with contextlib.suppress(UserError):
                    storage.remove_folder(undo)
            raise self._cannot_write(name, failure)

    def _write_tensors(self, folder: str, tensors: Mapping[str, Tensor], owners: Mapping[str, Ownership]) -> None:
        alone = self._world.size == 1
        shards = dict(tensors) if alone else {key: _shard(value, owners.get(key)) for key, value in tensors.items()}
        with _quiet():
            save_distributed(shards, storage_writer=self._writer(folder), no_dist=alone)

    def _writer(self, folder: str) -> FileSystemWriter:
        if not self._remote:
            return _LocalWriter(folder, sync_files=True)
        return _RemoteWriter(folder, sync_files=False, **s3.options())

    def _complete(self, partial: str, name: str, progress: Progress) -> None:
        storage.write_json(storage.join(partial, STATE_FILE), asdict(progress))
        if not self._remote:
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
        for old in self.names()[: -self._keep]:
            if progress.best is None or old != progress.best.checkpoint:
                with contextlib.suppress(UserError):  # it is only in the way
                    storage.remove_folder(self._path(old), marker=STATE_FILE)

    def progress(self, name: str) -> Progress:
        """Return what is no tensor.

        Raises:
            UserError: the checkpoint is missing or damaged.
        """
        remedy = f"remove the checkpoint {self._path(name)} to go on from an earlier one"
        progress: Progress = storage.read_record(self._path(name, STATE_FILE), Progress, remedy=remedy)
        return progress

    def tensors(
        self, name: str, owners: Mapping[str, Ownership], *, wanted: Callable[[str], bool] = lambda _: True
    ) -> dict[str, Tensor]:
        """Return the tensors whose names are wanted; every worker calls it at the same time.

        Args:
            name: the checkpoint.
            owners: for each tensor of which this worker wants its own rows only, who owns which.
            wanted: whether a tensor is wanted, by its name.

        Raises:
            UserError: the checkpoint is missing, damaged, or holds something other than tensors.
        """
        path = self._path(name)
        try:
            reader = _RemoteReader(path, **s3.options()) if self._remote else _LocalReader(path)
            entries = reader.read_metadata().state_dict_metadata
            tensors = {key: _empty(entry, owners.get(key)) for key, entry in entries.items() if wanted(key)}
            with _quiet():
                # Without a process group: what a worker reads does not depend on the others.
                load_distributed(tensors, storage_reader=reader, no_dist=True)
        except UserError:
            raise
        except (Exception, CheckpointException) as error:  # a damaged file can fail anywhere inside DCP
            raise UserError(
                f"the checkpoint {path} cannot be read: {_reason(error)}; remove it to go on from an earlier one"
            ) from error
        return {key: tensor.local if isinstance(tensor, _RowShard) else tensor for key, tensor in tensors.items()}


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


class _WithOurIndex(FileSystemWriter):
    """DCP's writer, with an index in JSON instead of a pickle."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index; the first worker does so when all have written their files."""
        write_index(str(self.path), metadata, results)


class _LocalWriter(_WithOurIndex):
    """Writes to a disk."""


class _RemoteWriter(_WithOurIndex, FsspecWriter):
    """Writes to S3."""


class _ByOurIndex(FileSystemReader):
    """DCP's reader, which finds the tensors by our index; it reads them weights-only."""

    def read_metadata(self) -> Metadata:
        """Read the index once."""
        if self._index is None:
            self._index = read_index(str(self.path))
        return self._index

    _index: Metadata | None = None


class _LocalReader(_ByOurIndex):
    """Reads from a disk."""


class _RemoteReader(_ByOurIndex, FsspecReader):
    """Reads from S3, the wanted ranges alone."""


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
        logger = logging.getLogger("torch.distributed.checkpoint")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """Return the operating system's reason, from inside DCP's wrapping, or the exception's text."""
    if isinstance(error, CheckpointException):  # what went wrong on each rank, with its traceback
        error = next(iter(error.failures.values()))[0]
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError):
            return one_line(inner)
        inner = inner.__cause__ or inner.__context__
    return one_line(error)
