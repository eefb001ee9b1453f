"""Checkpoints: complete or absent, the newest few and the best kept.

A checkpoint is a folder written by torch.distributed.checkpoint, with ``state.json`` for everything that is no tensor.
It is written aside and renamed, so a folder under its final name is complete.
"""

import contextlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from diffmm_dist import storage
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.train.state import Progress
from diffmm_dist.unpickle import load_pickle

STATE_FILE = "state.json"
_PREFIX = "epoch-"
_METADATA = "torch.distributed.checkpoint.metadata"
_METADATA_CLASSES = {
    **{
        (_METADATA, name): getattr(metadata, name)
        for name in (
            "Metadata", "MetadataIndex", "ChunkStorageMetadata", "TensorProperties", "TensorStorageMetadata",
            "StorageMeta", "_MEM_FORMAT_ENCODING",
        )
    },
    **{
        ("torch", name): getattr(torch, name)
        for name in ("Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "bool")
    },
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): filesystem._StorageInfo,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): PosixPath,
}  # fmt: skip


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    @staticmethod
    def name(epoch: int, phase: int = 0, step: int = 0) -> str:
        """Return the name of the checkpoint from which this step comes next; names sort as steps do."""
        inside = f"-phase-{phase}-step-{step:07d}" if phase or step else ""
        return f"{_PREFIX}{epoch:05d}{inside}"

    def names(self) -> list[str]:
        """Return the complete checkpoints, the oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if path.name.startswith(_PREFIX))

    def save(self, name: str, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint, then remove the ones that need not be kept.

        Args:
            name: from ``name``.
            tensors: all tensors.
            progress: everything else; the checkpoint of its best epoch stays.

        Raises:
            UserError: it cannot be written; the earlier checkpoints are untouched.
        """
        partial = self._folder / f"partial-{name}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            with _quiet():
                save_distributed(tensors, storage_writer=FileSystemWriter(partial, sync_files=True), no_dist=True)
            with (partial / STATE_FILE).open("w", encoding="utf-8") as file:
                json.dump(asdict(progress), file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._folder / name)
        except (Exception, CheckpointException) as error:  # DCP's own is no Exception
            shutil.rmtree(partial, ignore_errors=True)
            last = self.names()[-1:] or ["none"]
            raise UserError(
                f"cannot write the checkpoint {self._folder / name}: {_reason(error)}; the last complete checkpoint is "
                f"{last[0]}; make room or give write access, then run the same command again"
            ) from error
        for old in self.names()[: -self._keep]:
            if progress.best is None or old != progress.best.checkpoint:
                shutil.rmtree(self._folder / old, ignore_errors=True)

    def progress(self, name: str) -> Progress:
        """Return what is no tensor.

        Raises:
            UserError: the checkpoint is missing or damaged.
        """
        path = self._folder / name
        remedy = f"remove the checkpoint {path} to go on from an earlier one"
        progress: Progress = storage.read_record(str(path / STATE_FILE), Progress, remedy=remedy)
        return progress

    def tensors(self, name: str, *, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
        """Return the tensors whose names are wanted.

        Raises:
            UserError: the checkpoint is missing, damaged, or holds something other than tensors.
        """
        path = self._folder / name
        try:
            reader = _SafeReader(path)
            entries = reader.read_metadata().state_dict_metadata
            tensors = {key: _empty(entry) for key, entry in entries.items() if wanted(key)}
            with _quiet():
                load_distributed(tensors, storage_reader=reader, no_dist=True)
        except UserError:
            raise
        except (Exception, CheckpointException) as error:  # a damaged file can fail anywhere inside DCP
            raise UserError(
                f"the checkpoint {path} cannot be read: {_reason(error)}; remove it to go on from an earlier one"
            ) from error
        return tensors


class _SafeReader(FileSystemReader):
    """DCP's reader, with its pickled index read through an allow-list; the tensors are read weights-only anyway."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        with path.open("rb") as file:
            index: Metadata = load_pickle(file, allowed=_METADATA_CLASSES, source=str(path))
        if index.storage_meta is None:
            index.storage_meta = StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


def _empty(entry: Any) -> Tensor:
    assert isinstance(entry, TensorStorageMetadata)
    return torch.empty(entry.size, dtype=entry.properties.dtype)


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
