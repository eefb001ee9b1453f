"""One file of a table, whatever its format: its columns, and record batches of some of them."""

import codecs
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.dataset as arrow_dataset
import pyarrow.json as json

from diffmm_dist import storage
from diffmm_dist.data.importers.columns import MISSING
from diffmm_dist.data.importers.table_files import Part
from diffmm_dist.data.importers.table_schemas import UnifiedSchema
from diffmm_dist.errors import UserError

_ROWS_PER_BATCH = 131_072
_BLOCK_BYTES = 8 << 20  # of text that is parsed at a time; a row must fit in
_BATCHES_AHEAD = 2


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
            codecs.lookup(self.encoding)
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


class _ParquetReader(PartReader):
    @cached_property
    def _dataset(self) -> arrow_dataset.Dataset:
        file_system, path = storage.arrow_file_system(self.part.uri)
        return arrow_dataset.dataset([path], format="parquet", filesystem=file_system)

    @property
    def schema(self) -> pa.Schema:
        return self._dataset.schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from self._dataset.to_batches(
            columns=list(columns),
            batch_size=_ROWS_PER_BATCH,
            batch_readahead=_BATCHES_AHEAD,
            fragment_readahead=1,
        )


class _ArrowReader(PartReader):
    """An IPC file, such as a Feather file, or an IPC stream, such as a file of a Hugging Face dataset."""

    @contextmanager
    def _reader(self) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        with self._opened() as source:
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
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"{self.part.uri} has several columns called '{repeated[0]}'; rename all but one")
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
        with self._opened() as source:
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


class _JsonLinesReader(PartReader):
    """A JSON object per line. Blocks of lines are read twice: for the types of all values, and for the values."""

    @cached_property
    def schema(self) -> pa.Schema:
        schemas = (_without_times(_read_json(block).schema) for block in self._blocks())
        unified = UnifiedSchema.of((f"block {number}", schema) for number, schema in enumerate(schemas, start=1))
        if unified.conflicts:
            raise UserError(f"{self.part.uri}: {'; '.join(unified.conflicts.values())}; convert them to one type")
        return unified.schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        fields = pa.schema([self.schema.field(name) for name in columns])
        for block in self._blocks():
            yield from _read_json(block, explicit_schema=fields).select(list(columns)).to_batches()

    def _blocks(self) -> Iterator[io.BytesIO]:
        """Yield whole lines, as many as make up a block."""
        rest, is_first = b"", True
        with self._opened() as source:
            while piece := source.read(_BLOCK_BYTES):
                text = rest + bytes(piece)
                if is_first and text.lstrip()[:1] == b"[":
                    raise UserError(
                        f"{self.part.uri} is one JSON array; write one object per line instead, such as with "
                        "jq -c '.[]' or to_json(orient='records', lines=True)"
                    )
                is_first = False
                end = text.rfind(b"\n") + 1
                rest = text[end:]
                if text[:end].strip():
                    yield io.BytesIO(text[:end])
        if rest.strip():
            yield io.BytesIO(rest)


def _without_times(schema: pa.Schema) -> pa.Schema:
    """JSON knows no times: what Arrow takes for one is a text."""
    return pa.schema([field.with_type(pa.string()) if pa.types.is_timestamp(field.type) else field for field in schema])


def _read_json(block: io.BytesIO, explicit_schema: pa.Schema | None = None) -> pa.Table:
    """Parse whole lines at once, with the fields of a schema alone if one is given."""
    behavior = "infer" if explicit_schema is None else "ignore"
    return json.read_json(
        block,
        json.ReadOptions(block_size=block.getbuffer().nbytes + 1),
        json.ParseOptions(explicit_schema=explicit_schema, unexpected_field_behavior=behavior),
    )


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
