"""One file of a table, whatever its format: its columns, and record batches of some of them."""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.csv as csv

from diffmm_dist import storage
from diffmm_dist.data.arrow_messages import check_sizes
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers import json_lines
from diffmm_dist.preparation.importers.columns import MISSING
from diffmm_dist.preparation.importers.parquet_table import ParquetTable
from diffmm_dist.preparation.importers.table_files import Part
from diffmm_dist.preparation.importers.table_schemas import num_fields
from diffmm_dist.preparation.importers.text_source import TextSource, check_header
from diffmm_dist.regular_files import size_text
from diffmm_dist.words import shown

_ROWS_PER_BATCH = 131_072
_BLOCK_BYTES = 8 << 20  # of text that is parsed at a time; a row must fit in


@dataclass(frozen=True)
class TextOptions:
    """How CSV files are written.

    Attributes:
        delimiter: between columns; None for what the ending says.
        encoding: of the text.

    Raises:
        UserError: the delimiter is no single character, or Python does not know the encoding.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        problems = []
        if self.delimiter is not None and (len(self.delimiter.encode()) != 1 or self.delimiter in '"\r\n'):
            problems.append(
                f"--delimiter {self.delimiter!r} must be one ASCII character other than a quote or a line's end; write "
                "a table with another one"
            )
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            problems.append(f"--encoding {self.encoding!r} is unknown; give one such as utf-8, latin-1 or cp1252")
        if problems:
            raise UserError("; ".join(problems))


class PartReader(ABC):
    """Reads one file.

    Args:
        part: the file.
        text: how CSV files are written.
    """

    def __init__(self, part: Part, text: TextOptions) -> None:
        self.part = part
        self._text = text
        self._stop = threading.Event()

    def stop(self) -> None:
        """End what other threads read of the file; nobody waits for it any more."""
        self._stop.set()

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Names and types of the columns; empty for a file without any."""

    @abstractmethod
    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some columns, in the order of the file."""

    def likely_schema(self) -> pa.Schema:
        """Return the schema with the types that the values of a text file suggest."""
        return self.schema

    @contextmanager
    def _opened(self) -> Iterator[pa.NativeFile]:
        with storage.open_input(self.part.uri) as source:
            yield source if self.part.codec is None else pa.CompressedInputStream(source, self.part.codec)

    @contextmanager
    def _opened_text(self) -> Iterator[TextSource]:
        with self._opened() as source:
            text = TextSource(source, self._stop)
            try:
                yield text
            finally:
                text.leave()


class _ParquetReader(PartReader):
    @cached_property
    def _file(self) -> ParquetTable:
        file_system, path = storage.arrow_file_system(self.part.uri)
        return ParquetTable(path, file_system)

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from self._file.batches(columns, most_rows=_ROWS_PER_BATCH)


class _ArrowReader(PartReader):
    """An IPC file, such as a Feather file, or an IPC stream, such as a file of a Hugging Face dataset."""

    _is_checked = False

    @contextmanager
    def _reader(self) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        with self._opened() as source:
            if not self._is_checked:
                check_sizes(source)
                self._is_checked = True
                source.seek(0)
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                file = pa.ipc.open_file(source)
                yield file.schema, (file.get_batch(index) for index in range(file.num_record_batches))
            else:
                stream = pa.ipc.open_stream(source)
                yield stream.schema, iter(stream)

    @cached_property
    def schema(self) -> pa.Schema:
        with self._reader() as (schema, _):
            return schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._reader() as (_, batches):
            for batch in batches:
                chosen = batch.select(list(columns))
                chosen.validate(full=True)  # Arrow does not check what a file says of its own buffers
                for start in range(0, chosen.num_rows, _ROWS_PER_BATCH):
                    yield chosen.slice(start, _ROWS_PER_BATCH)


class _CsvReader(PartReader):
    """CSV and its kin, every column as the text that stands there; what is missing is null."""

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(name, pa.string()) for name in self._names])

    @cached_property
    def _names(self) -> list[str]:
        names: list[str] = self.likely_schema().names
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise UserError(f"{self.part.uri} has several columns called {shown(min(repeated))}; rename all but one")
        return names

    def likely_schema(self) -> pa.Schema:
        with self._csv(None) as reader:
            return pa.schema([]) if reader is None else reader.schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._csv(columns) as reader:
            yield from reader or ()

    @contextmanager
    def _csv(self, columns: Sequence[str] | None) -> Iterator[csv.CSVStreamingReader | None]:
        """Open the file for some columns as text, or for all with the types that its beginning suggests."""
        delimiter = self._text.delimiter or ("," if self.part.format == "CSV" else "\t")
        # The reader asks for these columns and no others, and takes their values for text.
        wanted = {} if columns is None else {
            "include_columns": list(columns), "column_types": dict.fromkeys(columns, pa.string()),
        }  # fmt: skip
        with self._opened_text() as source, self._explained():
            check_header(self.part.uri, source, delimiter=delimiter, encoding=self._text.encoding)
            try:
                reader = csv.open_csv(
                    source,
                    csv.ReadOptions(block_size=_BLOCK_BYTES, encoding=self._text.encoding),
                    csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                    csv.ConvertOptions(
                        strings_can_be_null=True,
                        quoted_strings_can_be_null=False,
                        null_values=MISSING,
                        **wanted,
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" not in str(error):
                    raise
                reader = None  # without even a header: Spark leaves such files
            yield reader

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            raise UserError(
                f"cannot read {self.part.uri}: a row is longer than {size_text(_BLOCK_BYTES)}, or a quote is never "
                "closed; mend it first"
            ) from error


class _JsonLinesReader(PartReader):
    """A JSON object per line. Blocks of lines are read twice: for the types of all values, and for the values."""

    @cached_property
    def schema(self) -> pa.Schema:
        return json_lines.schema_of(self.part.uri, self._blocks())

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        fields = pa.schema([self.schema.field(name) for name in columns])
        for block in self._blocks():
            for lines in block.pieces(num_fields(fields)):
                yield from json_lines.parse(lines, fields, others="ignore").select(list(columns)).to_batches()

    def _blocks(self) -> Iterator[json_lines.Lines]:
        with self._opened_text() as source:
            yield from json_lines.whole_lines(self.part.uri, source, size=_BLOCK_BYTES)


_READERS: dict[str, type[PartReader]] = {
    "Parquet": _ParquetReader,
    "Arrow": _ArrowReader,
    "CSV": _CsvReader,
    "TSV": _CsvReader,
    "JSON lines": _JsonLinesReader,
}


def open_part(part: Part, text: TextOptions) -> PartReader:
    """Return the reader of a file's format."""
    return _READERS[part.format](part, text)
