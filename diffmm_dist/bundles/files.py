"""The files of a bundle: what bundle.json says of them, and how tables are written and read."""

from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from diffmm_dist import storage
from diffmm_dist.data.arrow_files import Promise, read_arrow
from diffmm_dist.data.schema import ID_TYPES, ROWS_PER_BATCH, Natural
from diffmm_dist.errors import DamagedError, UserError

MARKER = "bundle.json"
USERS, ITEMS, SEEN = "users.arrow", "items.arrow", "seen.arrow"
SEEN_SCHEMA = pa.schema([pa.field("user", pa.int64()), pa.field("item", pa.int64())])
FORMAT_NAME = "diffmm_dist bundle"
FORMAT_VERSIONS = (1, 2)  # a bundle has the first version that can hold it, so that older programs read what they can
REMEDY = "export the run again"
Count = Annotated[int, Field(ge=1, lt=2**31)]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Marker(TypedDict):
    """bundle.json."""

    format: str
    version: int
    model: str
    best_epoch: int
    num_users: Count
    num_items: Count
    num_seen: Natural
    embedding_dim: Count
    dataset: str
    files: dict[str, str]
    further: NotRequired[dict[str, Natural]]


def read_marker(uri: str) -> Marker:
    """Read what a bundle says that it holds.

    Raises:
        UserError: there is none, or it is of another version.
        DamagedError: it is not what was exported.
    """
    place = storage.join(uri, MARKER)
    if not storage.exists(place):
        raise UserError(f"{uri} is not a complete bundle (it has no {MARKER}); make one with `export`")
    marker: Marker = storage.read_record(place, Marker, remedy=REMEDY)
    if marker["format"] != FORMAT_NAME or marker["version"] not in FORMAT_VERSIONS:
        raise UserError(f"{place} is not a bundle of this version of diffmm_dist; {REMEDY}")
    return marker


def embedding_table(ids: pa.ChunkedArray, rows: Floats) -> pa.Table:
    """Return a table of ids and embeddings (rows, d)."""
    flat = pa.array(rows.reshape(-1))
    embeddings = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    return pa.table({"id": ids, "embedding": embeddings})


def embedding_schemas(width: int) -> list[pa.Schema]:
    """Return the schemas that a table of embeddings may have, by the type of its ids."""
    return [
        pa.schema([pa.field("id", kind), pa.field("embedding", pa.list_(pa.float32(), width))])
        for kind in ID_TYPES.values()
    ]


def write_table(uri: str, table: pa.Table, *, compressed: bool = True) -> None:
    """Write a table as an Arrow file that appears when it is complete; one that is not compressed can be mapped."""
    options = pa.ipc.IpcWriteOptions(compression="zstd" if compressed else None)
    with (
        storage.replacing_file(uri) as file,
        pa.PythonFile(file, mode="w") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table, max_chunksize=ROWS_PER_BATCH)


def read_table(uri: str, name: str, marker: Marker, schemas: list[pa.Schema], rows: int) -> pa.Table:
    """Read a file of a bundle, which has one of some schemas and so many rows, comparing it with its checksum."""
    batches = [batch for _, batch in read_arrow(storage.join(uri, name), promise(uri, name, marker, schemas, rows))]
    return pa.Table.from_batches(batches, schema=batches[0].schema if batches else schemas[0])


def read_embeddings(uri: str, name: str, marker: Marker, rows: int, wanted: Ints) -> Floats:
    """Return some rows of a file of embeddings, which is compared with its checksum: float32 (wanted, d).

    No more than a record batch of the others is held.

    Args:
        uri: the bundle.
        name: the file.
        marker: what the bundle says that it holds.
        rows: how many the file has.
        wanted: row numbers, each at most once, in any order.

    Raises:
        UserError: the file is missing.
        DamagedError: it is not what was exported.
    """
    width = marker["embedding_dim"]
    order = np.argsort(wanted)
    ascending = wanted[order]
    found: Floats = np.empty((len(order), width), np.float32)
    start = 0
    promised = promise(uri, name, marker, embedding_schemas(width), rows)
    for _, batch in read_arrow(storage.join(uri, name), promised):
        low, high = np.searchsorted(ascending, (start, start + batch.num_rows))
        values = batch.column("embedding").flatten().to_numpy().reshape(batch.num_rows, width)
        found[order[low:high]] = values[ascending[low:high] - start]
        start += batch.num_rows
    return found


def promise(uri: str, name: str, marker: Marker, schemas: list[pa.Schema], rows: int) -> Promise:
    """Return what bundle.json says of a file, and which schemas it may have."""
    if name not in marker["files"]:
        raise DamagedError(f"{storage.join(uri, MARKER)} has no checksum of {name}; {REMEDY}")
    return Promise(schemas, rows, marker["files"][name], MARKER, REMEDY)
