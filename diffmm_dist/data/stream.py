"""Streaming Arrow IPC files: one record batch in memory at a time, every failure naming its file."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.errors import UserError, one_line


def read_batches(uri: str, *, expected: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of one file.

    Args:
        uri: the file.
        expected: the schema that it must have, metadata aside.
        rows: the rows that the manifest promises.

    Raises:
        UserError: the file is missing, truncated, no Arrow file, of another schema or of another length.
    """
    seen = 0
    with storage.open_input(uri) as source, _arrow_errors(uri):
        reader = pa.ipc.open_file(source)
        if not reader.schema.equals(expected, check_metadata=False):
            found = ", ".join(f"{field.name}: {field.type}" for field in reader.schema)
            wanted = ", ".join(f"{field.name}: {field.type}" for field in expected)
            raise UserError(f"{uri} has columns ({found}) where ({wanted}) are expected; prepare the dataset again")
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            seen += batch.num_rows
            yield batch
    if seen != rows:
        raise UserError(f"{uri} holds {seen} rows but the manifest says {rows}; prepare the dataset again")


@contextmanager
def _arrow_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{uri} is truncated or not an Arrow file ({one_line(error)}); prepare the dataset again"
        ) from error
