"""Streaming Arrow IPC files: a bounded number of record batches in memory, every failure naming its file."""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data.arrow_files import Promise, read_arrow
from diffmm_dist.data.schema import MANIFEST, FileEntry
from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import logger

Item = TypeVar("Item")


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        batches_ahead: record batches that a thread fetches and checks while earlier ones are used.
        cache: folder that keeps whole files from a store, named by checksum; None to fetch ranges every time.
        verify: compare every file with its checksum.
    """

    batches_ahead: int = 4
    cache: str | None = None
    verify: bool = True


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

    A thread fetches, decodes and checks them while earlier ones are used, also across the end of a file.

    Args:
        folder: of the dataset.
        files: which files, and the rows that the manifest promises of each.
        expected: the schema that they must have, metadata aside.
        reading: how to read from a store.
        skip: record batches of the first file that are not decoded.

    Raises:
        UserError: a file is missing, truncated, no Arrow file, of another schema, length or checksum.
    """
    reading = reading or Reading()
    return fetched_ahead(_chained(folder, files, expected, reading, skip), size=reading.batches_ahead)


def _chained(
    folder: str, files: Sequence[FileEntry], expected: pa.Schema, reading: Reading, skip: int
) -> Generator[ReadBatch, None, None]:
    for number, file in enumerate(files):
        uri = storage.join(folder, file.path)
        checksum = file.sha256 if reading.verify else None
        place = uri
        if reading.cache is not None and storage.is_remote(folder):
            place, checksum = _cached(uri, file, reading.cache, verify=reading.verify), None
        promise = Promise([expected], file.rows, checksum, MANIFEST, "prepare the dataset again")
        for index, rows in read_arrow(uri, promise, place=place, skip=skip):
            yield ReadBatch(number, index, rows)
        skip = 0


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


def _cached(uri: str, file: FileEntry, cache: str, *, verify: bool) -> str:
    """Return the copy of a file in the cache, fetching it if it is not there yet or is not what its name says."""
    place = os.path.join(cache, f"{file.sha256}.arrow")
    if os.path.exists(place):
        if not verify or storage.sha256(place) == file.sha256:
            return place
        logger.warning("%s is damaged: its checksum is not the one in its name; fetching it again", place)
    if storage.download(uri, place) != file.sha256:
        storage.remove_file(place)
        raise UserError(f"{uri} is damaged: its checksum is not the one in {MANIFEST}; prepare the dataset again")
    return place
