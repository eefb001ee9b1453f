"""The one place that reads our Arrow IPC files: nothing in them is used before it is checked.

Arrow's reader believes what a file says of its own offsets and lengths. So what a record batch says of its size is
compared with what is promised before it is decoded, every one is validated in full before anybody sees it, and the file
is compared with the checksum that was written beside it, as it is read.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.checksums import HashedReader
from diffmm_dist.data.arrow_messages import MalformedError, Message, Seekable, messages
from diffmm_dist.data.schema import ROWS_PER_BATCH
from diffmm_dist.errors import DamagedError, TryAgainError, may_pass, one_line


class Promise(NamedTuple):
    """What is known of a file before it is read.

    Attributes:
        schemas: one of these, metadata aside, is the file's.
        rows: how many it holds.
        sha256: its checksum; None to believe it.
        source: what says so, for errors.
        remedy: what the user can do about a damaged file.
    """

    schemas: Collection[pa.Schema]
    rows: int
    sha256: str | None
    source: str
    remedy: str


def read_arrow(
    uri: str, promise: Promise, *, place: str | None = None, skip: int = 0
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the record batches of a file with their numbers, each one validated.

    The last one comes when the checksum was found right: who has had all of them has had the file that was written.

    Args:
        uri: the file, as errors name it.
        promise: what it must be.
        place: where to read it, if a copy lies elsewhere.
        skip: record batches that are not decoded; their bytes count for the checksum all the same.

    Raises:
        UserError: the file is missing.
        DamagedError: it is no Arrow file, or not what is promised.
    """
    for index, _, batch in _checked_batches(uri, promise, place=place, skip=skip):
        yield index, batch


def read_placed(uri: str, promise: Promise) -> Iterator[tuple[int | None, pa.RecordBatch]]:
    """Yield the record batches of a file as ``read_arrow`` does, each with where the values of its last column lie.

    That is a number of bytes from the file's start, or None where they are compressed and lie nowhere.
    """
    for _, message, batch in _checked_batches(uri, promise):
        yield message.place_of_last_buffer(), batch


def _checked_batches(
    uri: str, promise: Promise, *, place: str | None = None, skip: int = 0
) -> Iterator[tuple[int, Message, pa.RecordBatch]]:
    held: tuple[int, Message, pa.RecordBatch] | None = None
    seen = 0
    with ExitStack() as opened, _explained(uri, promise.remedy):
        source = opened.enter_context(storage.open_input(place or uri))
        hashed = opened.enter_context(HashedReader(source)) if promise.sha256 is not None else None
        for index, message, schema in _record_batches(hashed or source, promise):
            if index < skip:
                continue
            if held is not None:
                yield held
            seen += message.rows
            if seen > promise.rows:
                break
            held = index, message, _decoded(message, schema)
        if seen != promise.rows and (skip == 0 or seen > promise.rows):
            raise _Unlike(f"holds {seen} rows but {promise.source} says {promise.rows}")
        if hashed is not None and hashed.hexdigest() != promise.sha256:
            raise _Unlike(f"is damaged: its checksum is not the one in {promise.source}")
        if held is not None:
            yield held


def _record_batches(file: Seekable, promise: Promise) -> Iterator[tuple[int, Message, pa.Schema]]:
    """Yield the numbers and messages of a file's record batches, and its schema, which is one of those promised."""
    found = messages(file)
    first = next(found, None)
    if first is None or not first.is_schema:
        raise MalformedError("it does not begin with a schema")
    schema = pa.ipc.read_schema(first.read())
    _check_schema(schema, promise)
    for index, message in enumerate(found):
        yield index, message, schema


def _decoded(message: Message, schema: pa.Schema) -> pa.RecordBatch:
    """Return a record batch, once it is sure how much memory it takes, and that what is in it is sound."""
    if not 0 <= message.rows <= ROWS_PER_BATCH:
        raise MalformedError(f"it holds a record batch of {message.rows:,} rows where {ROWS_PER_BATCH:,} are the most")
    data = message.read()
    message.check(data, schema)
    return _checked(pa.ipc.read_record_batch(data, schema))


class _Unlike(Exception):
    """A file is not what is promised; the text says in which respect."""


def _check_schema(found: pa.Schema, promise: Promise) -> None:
    if not any(found.equals(schema, check_metadata=False) for schema in promise.schemas):
        columns, *others = (", ".join(f"{field.name}: {field.type}" for field in s) for s in (found, *promise.schemas))
        raise _Unlike(f"has columns ({columns}) where ({') or ('.join(others)}) are expected")


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a record batch whose offsets and lengths stay inside its buffers, and which holds no nulls."""
    batch.validate(full=True)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        if column.null_count or values.null_count:
            raise _Unlike(f"holds nulls in column '{name}'")
    return batch


@contextmanager
def _explained(uri: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except _Unlike as error:
        raise DamagedError(f"{uri} {error}; {remedy}") from None
    except (MalformedError, pa.ArrowException, OSError) as error:
        if may_pass(error):
            raise TryAgainError(f"cannot read {uri}: {one_line(error)}; run the same command again") from error
        raise DamagedError(f"{uri} is truncated or not an Arrow file ({one_line(error)}); {remedy}") from error
