"""A Parquet file in batches that fit in memory, though a small file may say that a long value stands in many rows."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.dataset as arrow_dataset
import pyarrow.fs
import pyarrow.parquet as parquet

from diffmm_dist.data.arrow_messages import MalformedError
from diffmm_dist.preparation.importers.repeats import is_text

_BATCHES_AHEAD = 2
_BATCH_BYTES = 128 << 20  # of a batch's values, by what the file says of their number
_GROUP_BYTES = 1 << 30  # of a row group's values; more than this must be explained by the size of the file
_MOST_TIMES = 1 << 16  # that values may take of what they take in the file


class ParquetTable:
    """Reads one file.

    Args:
        path: within the file system.
        file_system: where it lies.
    """

    def __init__(self, path: str, file_system: pyarrow.fs.FileSystem) -> None:
        self._path = path
        self._file_system = file_system
        self._fragment = next(self._opened(()).get_fragments())
        self.schema: pa.Schema = self._fragment.physical_schema

    def batches(self, columns: Sequence[str], *, most_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some columns, texts as dictionaries.

        A text of a dictionary takes its room once, whatever number of rows repeats it, so that who wants it in full can
        see first how much that is.

        Raises:
            MalformedError: the values would take far more memory than the file's size explains.
        """
        texts = [name for name in columns if is_text(self.schema.field(name).type)]
        size = _bytes_per_row(self._fragment.metadata, columns)
        yield from self._opened(texts).to_batches(
            columns=list(columns),
            batch_size=max(1, min(most_rows, int(_BATCH_BYTES / max(size, 1)))),
            batch_readahead=_BATCHES_AHEAD,
            fragment_readahead=1,
        )

    def _opened(self, texts: Sequence[str]) -> arrow_dataset.Dataset:
        options = arrow_dataset.ParquetReadOptions(dictionary_columns=list(texts))
        # Arrow would keep the bytes of every row group that it has read until the file's end.
        scan = arrow_dataset.ParquetFragmentScanOptions(pre_buffer=False)
        file_format = arrow_dataset.ParquetFileFormat(read_options=options, default_fragment_scan_options=scan)
        return arrow_dataset.dataset([self._path], format=file_format, filesystem=self._file_system)


def _bytes_per_row(metadata: parquet.FileMetaData, columns: Sequence[str]) -> float:
    """Return the most bytes that the values of a row take on the average of its row group."""
    beginnings = tuple(f"{name}." for name in columns)  # of the paths of a column and of what it holds
    wanted = [n for n in range(metadata.num_columns) if f"{metadata.schema.column(n).path}.".startswith(beginnings)]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return max(
        (
            sum(_num_bytes(group.column(n), metadata.schema.column(n)) for n in wanted) / max(group.num_rows, 1)
            for group in groups
        ),
        default=0.0,
    )


def _num_bytes(chunk: parquet.ColumnChunkMetaData, column: parquet.ColumnSchema) -> int:
    """Return the bytes that the values of a column take in a row group."""
    size: int = max(chunk.total_uncompressed_size, chunk.num_values * (column.length or 8))
    if size > max(_GROUP_BYTES, _MOST_TIMES * chunk.total_compressed_size):
        raise MalformedError(
            f"{size:,} bytes of values in {chunk.total_compressed_size:,} bytes of the file are too much"
        )
    return size
