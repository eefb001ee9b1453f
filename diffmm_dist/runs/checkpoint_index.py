"""A checkpoint's index as JSON: which tensors it holds, and where their rows lie in the files.

torch.distributed.checkpoint would pickle its own classes, in a form that follows the releases of torch and Python. This
is plain text that any of them reads, and every field of it is checked.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult
from typing_extensions import TypedDict

from diffmm_dist import storage
from diffmm_dist.checksums import Checksum
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.records import parse_record
from diffmm_dist.runs.checkpoint_names import EARLIER_INDEX, INDEX_FILE

_LARGEST_FRAME = 1 << 16  # bytes that torch.save puts around a tensor; it takes one to two thousand
REMEDY = "restore it, or let `train` go on without this checkpoint"

Dtype = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "bool"]
Number = Annotated[int, Field(strict=True, ge=0, le=2**62)]
FileName = Annotated[str, Field(pattern=r"\A__[0-9]+_[0-9]+\.distcp\z")]  # inside the folder, as DCP names them


class Chunk(TypedDict):
    """Some rows of a tensor.

    ``offset`` is that of the first value, one number per dimension, ``size`` the shape; the bytes ``start`` to
    ``start + length`` of ``file`` are what ``torch.save`` wrote, and ``sha256`` is their checksum.
    """

    offset: list[Number]
    size: list[Number]
    file: FileName
    start: Number
    length: Number
    sha256: Checksum


class Entry(TypedDict):
    """A tensor; its chunks hold all rows, each once."""

    dtype: Dtype
    size: list[Number]
    chunks: list[Chunk]


class Index(TypedDict):
    """What ``index.json`` holds."""

    format: Literal[1]
    tensors: dict[str, Entry]


@dataclass
class StoredChunk(_StorageInfo):
    """Where a chunk lies, and its checksum, in the form in which DCP hands it around."""

    sha256: str = ""


def write_index(folder: str, metadata: Metadata, results: Iterable[Sequence[WriteResult]]) -> None:
    """Write the index.

    Args:
        folder: the checkpoint's, a path or an address.
        metadata: of all tensors, as DCP has planned them.
        results: of every worker, where it has put its chunks.

    Raises:
        UserError: it cannot be written.
    """
    places = {written.index: written.storage_data for of_worker in results for written in of_worker}
    tensors: dict[str, Entry] = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        dtype = str(entry.properties.dtype).removeprefix("torch.")
        assert dtype in get_args(Dtype), dtype
        chunks = [_chunk(chunk, places[MetadataIndex(name, chunk.offsets)]) for chunk in entry.chunks]
        tensors[name] = {"dtype": dtype, "size": list(entry.size), "chunks": chunks}  # type: ignore[typeddict-item]
    storage.write_json(storage.join(folder, INDEX_FILE), Index(format=1, tensors=tensors))


def index_sha256(folder: str) -> str:
    """Return the checksum of a checkpoint's index."""
    return storage.sha256(storage.join(folder, INDEX_FILE))


def _chunk(chunk: ChunkStorageMetadata, place: StoredChunk) -> Chunk:
    return {
        "offset": list(chunk.offsets),
        "size": list(chunk.sizes),
        "file": place.relative_path,
        "start": place.offset,
        "length": place.length,
        "sha256": place.sha256,
    }


def read_index(folder: str, *, sha256: str) -> Metadata:
    """Read and check the index, in the form in which DCP wants it.

    Args:
        folder: the checkpoint's.
        sha256: the index's checksum.

    Raises:
        UserError: it is missing, or of another version of the program.
        DamagedError: it is not what was written.
    """
    path = storage.join(folder, INDEX_FILE)
    if not storage.exists(path) and storage.exists(storage.join(folder, EARLIER_INDEX)):
        raise UserError(
            f"the checkpoint {folder} was written by an earlier version of this program, whose index this one does not "
            "read; go on with that version, or choose another run.path and train again"
        )
    data = storage.read_bytes(path)
    index: Index = parse_record(path, data, Index, remedy=REMEDY)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedError(f"{path} is damaged: its checksum is not the one in the checkpoint's state; {REMEDY}")
    for name, entry in index["tensors"].items():
        problem = _problem(entry)
        if problem:
            raise DamagedError(f"{path} is damaged at '{name}': {problem}; {REMEDY}")
    chunks = [(name, chunk) for name, entry in index["tensors"].items() for chunk in entry["chunks"]]
    return Metadata(
        state_dict_metadata={name: _entry(entry) for name, entry in index["tensors"].items()},
        storage_data={
            MetadataIndex(name, chunk["offset"]): StoredChunk(
                chunk["file"], chunk["start"], chunk["length"], sha256=chunk["sha256"]
            )
            for name, chunk in chunks
        },
    )


def _entry(entry: Entry) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        TensorProperties(dtype=getattr(torch, entry["dtype"])),
        torch.Size(entry["size"]),
        [ChunkStorageMetadata(torch.Size(chunk["offset"]), torch.Size(chunk["size"])) for chunk in entry["chunks"]],
    )


def _problem(entry: Entry) -> str | None:
    """Return what is wrong with an entry: its chunks must be its rows from the first to the last, each in its bytes."""
    size, width = entry["size"], getattr(torch, entry["dtype"]).itemsize
    if not size and len(entry["chunks"]) != 1:
        return "a single value must have one chunk"
    num_rows = 0
    for chunk in sorted(entry["chunks"], key=lambda chunk: chunk["offset"]):
        expected = [num_rows, *(0 for _ in size[1:])] if size else []
        if chunk["offset"] != expected or len(chunk["size"]) != len(size) or chunk["size"][1:] != size[1:]:
            return f"a chunk of {chunk['size']} at {chunk['offset']} of {size} overlaps another or leaves a gap"
        values = math.prod(chunk["size"]) * width
        if not values <= chunk["length"] <= values + _LARGEST_FRAME:
            return f"a chunk of {chunk['size']} of {entry['dtype']} does not take {chunk['length']} bytes"
        num_rows += chunk["size"][0] if size else 0
    return f"its chunks hold {num_rows} rows of {size[0]}" if size and num_rows != size[0] else None
