"""How torch.distributed.checkpoint (DCP) writes and reads tensors here: with our index, and a checksum per chunk."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

try:
    from torch.distributed.checkpoint.fsspec_filesystem import (  # type: ignore[import-not-found, unused-ignore]
        FsspecReader,
        FsspecWriter,
    )
except ImportError:  # torch before 2.15
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

from diffmm_dist import storage
from diffmm_dist.checksums import file_sha256
from diffmm_dist.errors import DamagedError
from diffmm_dist.regular_files import open_regular
from diffmm_dist.runs.checkpoint_index import REMEDY, StoredChunk, read_index, write_index
from diffmm_dist.stores.registry import store_of


def writer_to(folder: str) -> FileSystemWriter:
    """Return what writes a checkpoint to a folder, a path or an address."""
    if storage.is_remote(folder):
        return _RemoteWriter(folder, sync_files=False, **store_of(folder).options())
    return _Writer(folder, sync_files=True)


def reader_of(folder: str, *, index_sha256: str) -> FileSystemReader:
    """Return what reads a checkpoint, whose index must have a checksum; its chunks must have those that stand there."""
    if storage.is_remote(folder):
        return _RemoteReader(folder, index_sha256, **store_of(folder).options())
    return _LocalReader(folder, index_sha256)


class _Writer(FileSystemWriter):
    """DCP's writer, which hashes what it writes, with an index in JSON instead of a pickle."""

    def __init__(self, folder: str, **options: Any) -> None:
        self._hashing = _Hashing()
        super().__init__(folder, _extensions=[self._hashing], **options)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this worker's chunks; the results say where they are and what their checksums are."""
        self._hashing.outputs.clear()
        written = super().write_data(plan, planner).value()
        hashes = [output.digest.hexdigest() for output in self._hashing.outputs]
        done: Future[list[WriteResult]] = Future()
        done.set_result([_with_hash(result, sha256) for result, sha256 in zip(written, hashes, strict=True)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index; the first worker does so when all have written their files."""
        write_index(str(self.path), metadata, results)


def _with_hash(result: WriteResult, sha256: str) -> WriteResult:
    place = result.storage_data
    chunk = StoredChunk(place.relative_path, place.offset, place.length, sha256=sha256)
    return WriteResult(result.index, result.size_in_bytes, chunk)


class _RemoteWriter(_Writer, FsspecWriter):
    """Writes to a store."""


class _Hashing(StreamTransformExtension):
    """Stands between DCP and its file; nothing of it is needed for reading.

    Attributes:
        outputs: one for each chunk, in the order in which they are written.
    """

    def __init__(self) -> None:
        self.outputs: list[_HashedOutput] = []

    @staticmethod
    def registry_name() -> str:
        """Return a name that is never looked up."""
        return "stream.sha256"

    @staticmethod
    def from_descriptor(version: str) -> "_Hashing":
        """Never called: our index keeps no descriptors."""
        raise NotImplementedError

    def get_descriptor(self) -> str:
        """Return a name that is never looked up."""
        return self.registry_name()

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        """Return a file that hashes one chunk on its way to the output."""
        self.outputs.append(_HashedOutput(output))
        return self.outputs[-1]  # type: ignore[return-value]

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        """Return the input."""
        return input


class _HashedOutput(io.RawIOBase):
    """Passes on what is written, and closes with the output."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._output.write(data)

    def close(self) -> None:
        if not self.closed:
            self._output.close()
            # It flushes DCP's file once more when it is collected, and Python 3.13 complains if that is closed by then.
            del self._output
        super().close()


class _Reader(FileSystemReader):
    """DCP's reader, which finds the tensors by our index and checks every chunk; it reads them weights-only."""

    _kept_in_memory = False

    def __init__(self, folder: str, index_sha256: str, **options: Any) -> None:
        super().__init__(folder, **options)
        self._index_sha256 = index_sha256
        self._index: Metadata | None = None

    def read_metadata(self) -> Metadata:
        """Read the index once."""
        if self._index is None:
            self._index = read_index(str(self.path), sha256=self._index_sha256)
        return self._index

    def _slice_file(self, file: Any, sinfo: _StorageInfo) -> IO[bytes]:
        assert isinstance(sinfo, StoredChunk)
        view = super()._slice_file(file, sinfo)
        chunk = io.BytesIO(view.read()) if self._kept_in_memory else view
        if file_sha256(chunk) != sinfo.sha256:
            raise DamagedError(
                f"{self.path}/{sinfo.relative_path} is damaged: its checksum is not the one in its index; {REMEDY}"
            )
        chunk.seek(0)
        return chunk


class _LocalReader(_Reader):
    """Reads from a disk, regular files alone: a pipe or a device under a file's name would never end."""

    def __init__(self, folder: str, index_sha256: str) -> None:
        super().__init__(folder, index_sha256)
        self.fs = _RegularFiles()


class _RegularFiles(FileSystem):
    """DCP's view of a disk."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[IO[bytes]]:  # type: ignore[override]
        """Open a file for reading."""
        assert mode == "rb"
        with open_regular(path) as file:
            yield file


class _RemoteReader(_Reader, FsspecReader):
    """Reads from a store, the wanted chunks alone, each once."""

    _kept_in_memory = True
