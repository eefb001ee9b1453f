"""Parquet, CSV and Arrow tables on a disk or S3, as record batches of chosen columns, a few of them at a time."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.dataset as arrow_dataset

from diffmm_dist import storage
from diffmm_dist.errors import UserError, closest, one_line

_FORMATS = {
    "parquet": "parquet", "csv": "csv", "tsv": "tsv", "inter": "tsv", "arrow": "ipc", "feather": "ipc", "ipc": "ipc",
}  # fmt: skip
_SUFFIX = re.compile(rf"\.({'|'.join(_FORMATS)})(\.gz)?$")
_BATCHES_AHEAD = 2
_ROWS_PER_BATCH = 131_072


class Table:
    """One table: a file, or a folder of files of one format.

    Args:
        uri: path or s3:// address.
        text_columns: columns that a CSV file's reader is not to take for numbers.

    Raises:
        UserError: there is nothing of a known format there.
    """

    def __init__(self, uri: str, *, text_columns: Sequence[str] = ()) -> None:
        self.uri = uri
        paths = [uri] if _SUFFIX.search(uri) else _files_of(uri)
        if not paths or not storage.exists(paths[0]):
            what = "holds no such file" if storage.exists(uri) else "does not exist"
            known = ", ".join(f".{name}" for name in _FORMATS)
            raise UserError(f"{uri} {what}; give a table ({known}) or a folder of tables of one format")
        formats = {_format(path) for path in paths}
        if len(formats) > 1:
            raise UserError(f"{uri} mixes files of {' and '.join(sorted(formats))}; give a folder of one format")
        file_system, _ = storage.arrow_file_system(uri)
        with self._explained():
            self._dataset = arrow_dataset.dataset(
                [storage.arrow_file_system(path)[1] for path in paths],
                format=_reader(formats.pop(), text_columns),
                filesystem=file_system,
            )

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._dataset.schema

    def check_columns(self, names: Sequence[str]) -> None:
        """Raise a ``UserError`` that names every column that is not there."""
        missing = [name for name in names if name not in self.schema.names]
        if missing:
            described = ", ".join(f"'{name}'{closest(name, self.schema.names)}" for name in missing)
            raise UserError(f"{self.uri} has no column {described}; its columns are {', '.join(self.schema.names)}")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the given columns; a few batches are read ahead."""
        self.check_columns(columns)
        with self._explained():
            yield from self._dataset.to_batches(
                columns=list(columns),
                batch_size=_ROWS_PER_BATCH,
                batch_readahead=_BATCHES_AHEAD,
                fragment_readahead=1,
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            text = one_line(error)
            remedy = "; if that is an id, pass --string-ids" if "CSV conversion error" in text else ""
            raise UserError(f"cannot read {self.uri}: {text}{remedy}") from error


def id_array(column: pa.Array, *, name: str, uri: str) -> pa.Array:
    """Return ids as int64 or string.

    Raises:
        UserError: they are neither whole numbers within int64 nor strings.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    try:
        if pa.types.is_integer(kind):
            return column.cast(pa.int64())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return column.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri}: column '{name}' holds an id that does not fit: {one_line(error)}") from error
    raise UserError(f"{uri}: column '{name}' holds {kind}, but ids are whole numbers or strings; convert it first")


def number_array(column: pa.Array, *, name: str, uri: str) -> pa.Array:
    """Return numbers, dates or times as float64, of times the microseconds since 1970.

    Raises:
        UserError: the column holds something else.
    """
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise UserError(f"{uri}: column '{name}' holds {kind}, but numbers or times are needed; convert it first")
    return pc.cast(column, pa.float64(), safe=False)


def _files_of(folder: str) -> list[str]:
    names = (name for name in storage.list_tree(folder) if not name.rsplit("/", 1)[-1].startswith((".", "_")))
    return [storage.join(folder, name) for name in names if _SUFFIX.search(name)]


def _format(path: str) -> str:
    match = _SUFFIX.search(path)
    assert match is not None
    return _FORMATS[match.group(1)]


def _reader(name: str, text_columns: Sequence[str]) -> arrow_dataset.FileFormat | str:
    if name not in ("csv", "tsv"):
        return name
    return arrow_dataset.CsvFileFormat(
        parse_options=csv.ParseOptions(delimiter="," if name == "csv" else "\t"),
        convert_options=csv.ConvertOptions(column_types={column: pa.string() for column in text_columns}),
    )
