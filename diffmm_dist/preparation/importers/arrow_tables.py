"""Tables as people have them, on a disk or a store, as record batches of chosen columns, a few of them at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property

import pyarrow as pa

from diffmm_dist.data.arrow_messages import MalformedError
from diffmm_dist.errors import UserError, closest, one_line
from diffmm_dist.preparation.importers.table_files import Part, find_files
from diffmm_dist.preparation.importers.table_formats import PartReader, TextOptions, open_part
from diffmm_dist.preparation.importers.table_schemas import UnifiedSchema, check_width, converted, num_fields
from diffmm_dist.stores.access import explained

_HEADERS_AT_A_TIME = 8
_SEPARATORS = (";", "\t", "|", ",")


class Table:
    """One table: a file, or the files of a folder or a pattern.

    Its files may differ in the order of their columns, in widths of numbers, units of times and forms of text. Folders
    named ``COLUMN=VALUE`` are columns of text.

    Args:
        uri: path or address.
        text: how CSV files are written.

    Attributes:
        uri: path or address.
        notes: what the user should know of the files.
        schema: names and types of the columns; of CSV files all are text.
        is_text: whether the values are texts that nobody has read as numbers yet.

    Raises:
        UserError: there is nothing of a known format there, or a file cannot be read.
    """

    def __init__(self, uri: str, text: TextOptions | None = None) -> None:
        self.uri = uri
        text = text or TextOptions()
        files = find_files(uri, delimited=text.delimiter is not None)
        self.notes = files.notes
        self.is_text = files.parts[0].format in ("CSV", "TSV")
        readers = [open_part(part, text) for part in files.parts]
        with ThreadPoolExecutor(_HEADERS_AT_A_TIME) as threads:
            try:
                schemas = list(threads.map(_schema_of, readers))
            except BaseException:
                for reader in readers:
                    reader.stop()
                raise
        self._readers = [
            (reader, set(schema.names)) for reader, schema in zip(readers, schemas, strict=True) if schema.names
        ]
        self._unified = UnifiedSchema.of(
            (reader.part.uri, _with_constants(schema, reader.part))
            for reader, schema in zip(readers, schemas, strict=True)
            if schema.names
        )
        self.schema = self._unified.schema

    @cached_property
    def likely_schema(self) -> pa.Schema:
        """The schema, of CSV files with the types that the beginning of the first one suggests."""
        if not self.is_text or not self._readers:
            return self.schema
        reader, names = self._readers[0]
        with _explained(reader.part.uri):
            likely = reader.likely_schema()
        return pa.schema([likely.field(column.name) if column.name in names else column for column in self.schema])

    def check_columns(self, names: Sequence[str]) -> None:
        """Raise a ``UserError`` that names every column that is not there, or of which files disagree."""
        known = self.schema.names
        missing = [name for name in names if name not in known]
        if missing:
            described = ", ".join(f"'{name}'{closest(name, known)}" for name in missing)
            there = ", ".join(known) or "none, since it is empty"
            raise UserError(f"{self.uri} has no column {described}; its columns are {there}{self._separator()}")
        self._unified.check(names)
        for reader, own in self._readers:
            lacking = [f"'{name}'" for name in names if name not in own and name not in reader.part.constants]
            if lacking:
                raise UserError(
                    f"{reader.part.uri} lacks the column {', '.join(lacking)} that other files of {self.uri} have"
                )

    def _separator(self) -> str:
        """Guess what separates the columns of a file that seems to have only one."""
        names = self.schema.names
        if not self.is_text or len(names) != 1:
            return ""
        found = next((repr(mark) for mark in _SEPARATORS if mark in names[0]), None)
        return f"; they look separated by {found}: pass it as --delimiter" if found else ""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the given columns, file by file, with the types of the schema.

        Raises:
            UserError: a column is not there, or a file cannot be read.
        """
        self.check_columns(columns)
        wanted = pa.schema([self.schema.field(name) for name in columns])
        for reader, own in self._readers:
            with _explained(reader.part.uri):
                for batch in reader.batches([name for name in columns if name in own]):
                    yield _completed(batch, wanted, reader.part)


def _schema_of(reader: PartReader) -> pa.Schema:
    with _explained(reader.part.uri):
        check_width(reader.part.uri, num_fields(reader.schema))
        return reader.schema


def _with_constants(schema: pa.Schema, part: Part) -> pa.Schema:
    """Add the columns that stand in the path; where a file has a column of the same name, that one counts."""
    more = [pa.field(name, pa.string()) for name in part.constants if name not in schema.names]
    return pa.schema([*schema, *more])


def _completed(batch: pa.RecordBatch, wanted: pa.Schema, part: Part) -> pa.RecordBatch:
    """Return a batch with the columns of its path, every column in the type of the table."""
    columns = []
    for column in wanted:
        if column.name in batch.schema.names:
            values = batch.column(column.name)
        else:
            values = pa.repeat(pa.scalar(part.constants[column.name], pa.string()), batch.num_rows)
        try:
            columns.append(converted(values, column.type))
        except pa.ArrowException as error:
            raise UserError(
                f"{part.uri}: column '{column.name}' holds a value that does not fit {column.type}, which the table's "
                f"other files need: {one_line(error)}"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    with explained(uri, "read"):  # what clients of stores raise
        try:
            yield
        except (MalformedError, pa.ArrowException, OSError, UnicodeError) as error:
            text = one_line(error)
            is_encoding = isinstance(error, UnicodeError) or "invalid UTF8" in text or "\0" in text
            remedy = "; if its text is not UTF-8, name its encoding with --encoding" if is_encoding else ""
            raise UserError(f"cannot read {uri}: {text}{remedy}") from error
