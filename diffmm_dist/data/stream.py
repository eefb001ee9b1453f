"""Streaming Arrow IPC files: a bounded number of record batches in memory, every failure naming its file."""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data.schema import FileEntry
from diffmm_dist.errors import UserError, one_line

Item = TypeVar("Item")


@dataclass(frozen=True)
class Reading:
    """How files on S3 are read; those on a disk are mapped.

    Attributes:
        batches_ahead: record batches that a thread fetches while earlier ones are used.
        cache: folder that keeps whole files, checked and named by checksum; None to fetch ranges every time.
    """

    batches_ahead: int = 4
    cache: str | None = None


class ReadBatch(NamedTuple):
    """A record batch with the place it came from.

    Attributes:
        file: number of its file among those that are read.
        batch: its number in that file.
        rows: the record batch.
    """

    file: int
    batch: int
    rows: pa.RecordBatch


def read_batches(
    folder: str, files: Sequence[FileEntry], *, expected: pa.Schema, reading: Reading | None = None, skip: int = 0
) -> Iterator[ReadBatch]:
    """Yield the record batches of files, one file after the other.

    What lies on S3 is fetched by a thread while earlier batches are used, also across the end of a file.

    Args:
        folder: of the dataset.
        files: which files, and the rows that the manifest promises of each.
        expected: the schema that they must have, metadata aside.
        reading: how to read from S3.
        skip: record batches of the first file that are not read.

    Raises:
        UserError: a file is missing, truncated, no Arrow file, of another schema, length or checksum.
    """
    reading = reading or Reading()
    batches = _chained(folder, files, expected, reading.cache, skip)
    return fetched_ahead(batches, size=reading.batches_ahead) if storage.is_remote(folder) else batches


def _chained(
    folder: str, files: Sequence[FileEntry], expected: pa.Schema, cache: str | None, skip: int
) -> Generator[ReadBatch, None, None]:
    for number, file in enumerate(files):
        uri = storage.join(folder, file.path)
        place = _cached(uri, file, cache) if cache is not None and storage.is_remote(folder) else uri
        for index, rows in _batches(place, uri, expected, file.rows, skip):
            yield ReadBatch(number, index, rows)
        skip = 0


def _batches(place: str, uri: str, expected: pa.Schema, rows: int, skip: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the batches of a file at ``place``, called ``uri`` in errors; its rows are counted if none is skipped."""
    seen = 0
    with storage.open_input(place) as source, _arrow_errors(uri):
        reader = pa.ipc.open_file(source)
        if not reader.schema.equals(expected, check_metadata=False):
            found = ", ".join(f"{field.name}: {field.type}" for field in reader.schema)
            wanted = ", ".join(f"{field.name}: {field.type}" for field in expected)
            raise UserError(f"{uri} has columns ({found}) where ({wanted}) are expected; prepare the dataset again")
        for index in range(skip, reader.num_record_batches):
            batch = reader.get_batch(index)
            seen += batch.num_rows
            yield index, batch
    if skip == 0 and seen != rows:
        raise UserError(f"{uri} holds {seen} rows but the manifest says {rows}; prepare the dataset again")


def fetched_ahead(items: Generator[Item, None, None], *, size: int) -> Iterator[Item]:
    """Yield what a generator yields while a thread takes up to ``size`` items of it in advance.

    What it raises is raised here, after the items before it; it is closed when the caller has had enough.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch-ahead") as thread:
        ahead = deque(thread.submit(next, items, None) for _ in range(size))
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(thread.submit(next, items, None))
                yield item
        finally:
            for future in ahead:
                future.cancel()
            thread.submit(items.close)


def _cached(uri: str, file: FileEntry, cache: str) -> str:
    """Return the copy of a file in the cache, fetching it if it is not there yet."""
    place = os.path.join(cache, f"{file.sha256}.arrow")
    if not os.path.exists(place) and storage.download(uri, place) != file.sha256:
        os.remove(place)
        raise UserError(f"{uri} is not what the manifest says: its checksum differs; prepare the dataset again")
    return place


@contextmanager
def _arrow_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{uri} is truncated or not an Arrow file ({one_line(error)}); prepare the dataset again"
        ) from error
