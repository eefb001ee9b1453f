"""The prepared dataset's format: its manifest and the Arrow schemas of its files (docs/data-format.md)."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from diffmm_dist.checksums import Checksum

FORMAT_NAME: Literal["diffmm_dist dataset"] = "diffmm_dist dataset"
FORMAT_VERSIONS = (1, 2)  # a dataset has the first version that can hold it, so that older programs read what they can
MANIFEST = "manifest.json"
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
ROWS_PER_BATCH = 65_536
FEATURE_BYTES_PER_BATCH = 4 << 20  # fewer rows where they are wide, so that a reader holds little

INTERACTIONS = pa.schema([pa.field("user", pa.int64(), nullable=False), pa.field("item", pa.int64(), nullable=False)])

ID_TYPES = {"int64": pa.int64(), "string": pa.string()}

# A manifest may come from anywhere. What it says becomes paths, sizes of memory and ranges, so every field has a form
# and a bound, and the whole is checked for contradictions before anything is done with it.
LARGEST_WIDTH = 1 << 20
MOST_FILES = 100_000
_MOST_MODALITIES = 64
_MOST_AXES, _MOST_TABLES, _MOST_COLUMNS = 16, 64, 16
_MOST_FIGURES = 64
_LARGEST_NOTE = 64 << 10  # characters of made_by
_LONGEST_PATH = 512

Natural = Annotated[int, Field(ge=0, lt=2**63)]
Row = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(pattern=r"^\w+$", max_length=64)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
Files = Annotated[tuple["RowFile", ...], Field(max_length=MOST_FILES)]
Bounds = Annotated[tuple[Row, ...], Field(min_length=2, max_length=MOST_FILES + 1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Record):
    """One data file: where it is inside the dataset, how much it holds, and its checksum."""

    path: Annotated[str, Field(pattern=r"^[\w=-][\w=.-]*(/[\w=-][\w=.-]*)*$", max_length=_LONGEST_PATH)]
    rows: Natural
    sha256: Checksum  # it becomes a name in the cache


class InteractionFile(FileEntry):
    """Interactions of the users ``user_start <= user < user_stop``."""

    user_start: Row
    user_stop: Row


class RowFile(FileEntry):
    """Rows of consecutive users or items, from ``row_start`` on."""

    row_start: Row


class Modality(_Record):
    """Features of one modality: one row of ``width`` numbers per item, in item order."""

    width: Annotated[int, Field(ge=1, le=LARGEST_WIDTH)]
    dtype: Literal["float16", "float32"]
    files: Files


class Ids(_Record):
    """Original ids, in internal order."""

    dtype: Literal["int64", "string"]
    files: Files


class Axis(_Record):
    """Rows of another kind than users and items, such as the entities of a knowledge graph that are no items.

    Attributes:
        count: how many there are.
        ids: their original ids.
    """

    count: Annotated[int, Field(ge=1, lt=2**31)]
    ids: Ids


class TableFile(FileEntry):
    """Rows of a table whose first column lies in one part; all of them where there are no parts."""

    part: Row


class Table(_Record):
    """Rows that name rows of axes, such as the triples of a knowledge graph.

    Attributes:
        columns: by name, in order, the axes whose rows a column numbers, one axis after the other: a column of
            ``("items", "entities")`` numbers the I items first and the entities from I on.
        files: of every part.
    """

    columns: Annotated[dict[Name, Annotated[tuple[Name, ...], Field(min_length=1, max_length=_MOST_AXES)]],
                       Field(min_length=1, max_length=_MOST_COLUMNS)]  # fmt: skip
    files: Annotated[tuple[TableFile, ...], Field(max_length=MOST_FILES)]


class AxisParts(_Record):
    """Where each part's rows of an axis start, with the end of the last, and files of the numbers they had before."""

    bounds: Bounds
    order: Files


class Partition(_Record):
    """How the rows of a dataset were reordered so that neighbours lie in the same part.

    Attributes:
        method: how the parts were found.
        user_bounds: first user row of each part, and the end of the last.
        item_bounds: the same of items.
        user_order: for each user row its number in the dataset that was partitioned.
        item_order: the same of items.
        report: edges, halo rows and balance of the parts.
        further: of other axes; those that are not here are not cut.
    """

    method: Literal["metis", "random"]
    user_bounds: Bounds
    item_bounds: Bounds
    user_order: Files
    item_order: Files
    report: Annotated[dict[Name, Annotated[dict[Name, Figure], Field(max_length=_MOST_FIGURES)]], Field(max_length=2)]
    further: Annotated[dict[Name, AxisParts], Field(max_length=_MOST_AXES)] = {}

    @model_serializer(mode="wrap")
    def _without_what_it_lacks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_empty(handler(self), "further")

    @property
    def num_parts(self) -> int:
        """P."""
        return len(self.user_bounds) - 1

    @property
    def axes(self) -> dict[str, AxisParts]:
        """The parts of every axis that is cut, by name."""
        users = AxisParts(bounds=self.user_bounds, order=self.user_order)
        items = AxisParts(bounds=self.item_bounds, order=self.item_order)
        return {"users": users, "items": items, **self.further}


class Manifest(_Record):
    """What a dataset holds; written last, so a folder without it is no dataset."""

    format: Literal["diffmm_dist dataset"] = FORMAT_NAME
    version: Literal[1, 2]
    num_users: Annotated[int, Field(ge=1, lt=2**31)]
    num_items: Annotated[int, Field(ge=1, lt=2**31)]
    interactions: dict[Split, Annotated[tuple[InteractionFile, ...], Field(max_length=MOST_FILES)]]
    modalities: Annotated[dict[Name, Modality], Field(max_length=_MOST_MODALITIES)]
    user_ids: Ids
    item_ids: Ids
    partition: Partition | None = None
    axes: Annotated[dict[Name, Axis], Field(max_length=_MOST_AXES)] = {}
    tables: Annotated[dict[Name, Table], Field(max_length=_MOST_TABLES)] = {}
    made_by: dict[str, Any]

    @model_serializer(mode="wrap")
    def _without_what_it_lacks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_empty(handler(self), "axes", "tables")

    @model_validator(mode="after")
    def _is_consistent(self) -> "Manifest":
        wrong = next(self._contradictions(), None)
        if wrong is not None:
            raise ValueError(wrong)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield what the manifest says in one place and denies in another."""
        paths = [file.path.casefold() for file in self.files()]  # some file systems know no case
        if len(set(paths)) < len(paths):
            yield "it names the same file twice"
        if len(json.dumps(self.made_by, default=str)) > _LARGEST_NOTE:
            yield f"its made_by is longer than {_LARGEST_NOTE:,} characters"
        for split, files in self.interactions.items():
            ranges = [(file.user_start, file.user_stop) for file in files]
            if files and not _covering(ranges, self.num_users):
                yield f"the users of its {split} files do not lie one after the other from 0 to {self.num_users:,}"
        if self.version == 1 and (self.axes or self.tables):
            yield "it says version 1 but holds axes or tables, which version 2 has"
        yield from self._unknown_axes()
        if self.partition is not None:
            yield from self._broken_bounds(self.partition)
        for what, row_files, count in self._row_files():
            if not _covering([(file.row_start, file.row_start + file.rows) for file in row_files], count):
                yield f"its {what} do not lie one after the other from row 0 to row {count:,}"

    def _row_files(self) -> Iterator[tuple[str, tuple[RowFile, ...], int]]:
        """Yield all files that hold a row per user or item: what they hold, the files, and how many rows that is."""
        yield "ids of users", self.user_ids.files, self.num_users
        yield "ids of items", self.item_ids.files, self.num_items
        for name, axis in self.axes.items():
            yield f"ids of {name}", axis.ids.files, axis.count
        for name, modality in self.modalities.items():
            yield f"{name} features", modality.files, self.num_items
        if self.partition is not None:
            for name, parts in self.partition.axes.items():
                if name in self.counts:
                    yield f"order of {name}", parts.order, self.counts[name]

    def _unknown_axes(self) -> Iterator[str]:
        """Yield what names rows that are nowhere."""
        for name in self.axes:
            if name in ("users", "items"):
                yield f"its axis {name} is what every dataset has"
        for name, table in self.tables.items():
            for column, axes in table.columns.items():
                unknown = [axis for axis in axes if axis not in self.counts]
                if unknown:
                    yield f"column {column} of its table {name} is of an axis {unknown[0]} that it does not have"
            for file in table.files:
                if file.part >= self.num_parts:
                    yield f"a file of its table {name} is of a part that it does not have"

    def _broken_bounds(self, partition: Partition) -> Iterator[str]:
        for kind, parts in partition.axes.items():
            if len(parts.bounds) != len(partition.user_bounds):
                yield f"its parts of users and of {kind} are not equally many"
            if kind not in self.counts:
                yield f"it cuts an axis {kind} that it does not have"
            elif not _covering(list(pairwise(parts.bounds)), self.counts[kind]):
                yield f"its bounds of {kind} do not rise from 0 to {self.counts[kind]:,}"

    @property
    def counts(self) -> dict[str, int]:
        """Rows of every axis, by name."""
        further = {name: axis.count for name, axis in self.axes.items()}
        return {**further, "users": self.num_users, "items": self.num_items}

    @property
    def num_parts(self) -> int:
        """P; 1 of a dataset without parts."""
        return 1 if self.partition is None else self.partition.num_parts

    def ids_of(self, axis: str) -> Ids:
        """Return the original ids of an axis."""
        own = {"users": self.user_ids, "items": self.item_ids}
        return own[axis] if axis in own else self.axes[axis].ids

    def num_interactions(self, split: Split) -> int:
        """Return the number of interactions of a split."""
        return sum(file.rows for file in self.interactions.get(split, ()))

    def files(self) -> list[FileEntry]:
        """Return every file that the dataset consists of."""
        groups: list[tuple[FileEntry, ...]] = [
            *self.interactions.values(),
            *(modality.files for modality in self.modalities.values()),
            self.user_ids.files,
            self.item_ids.files,
            *(axis.ids.files for axis in self.axes.values()),
            *(table.files for table in self.tables.values()),
        ]
        if self.partition is not None:
            groups += [parts.order for parts in self.partition.axes.values()]
        return [file for group in groups for file in group]

    @property
    def fingerprint(self) -> str:
        """A hash of all contents, independent of where the dataset lies and of who made it when.

        It stands for the contents themselves, since what is read is compared with the checksums in here.
        """
        contents = self.model_dump_json(exclude={"made_by": True, "partition": {"report"}})
        return hashlib.sha256(contents.encode()).hexdigest()


def _without_empty(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return a record without those of some keys that hold nothing, as programs write it that do not know the keys."""
    return {key: value for key, value in record.items() if key not in keys or value}


def _covering(ranges: Sequence[tuple[int, int]], count: int) -> bool:
    """Tell whether ranges follow one another without a gap from 0 to ``count``."""
    edges = [0, *(edge for range_ in ranges for edge in range_), count]
    return all(low <= high for low, high in ranges) and all(
        stop == start for stop, start in zip(edges[::2], edges[1::2], strict=True)
    )


def table_schema(columns: Mapping[str, Sequence[str]]) -> pa.Schema:
    """Return the schema of a table's files: int64 columns."""
    return pa.schema([pa.field(name, pa.int64(), nullable=False) for name in columns])


def feature_schema(width: int, dtype: str) -> pa.Schema:
    """Return the schema of a feature file: one fixed-size list per item."""
    value = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema([pa.field("features", pa.list_(value, width), nullable=False)])


def rows_per_batch(file_schema: pa.Schema) -> int:
    """Return the most rows of a record batch: 65,536, and not more than 4 MiB of features."""
    kind = file_schema.types[0]
    if not pa.types.is_fixed_size_list(kind):
        return ROWS_PER_BATCH
    row_bytes = kind.list_size * kind.value_type.bit_width // 8
    fitting: int = FEATURE_BYTES_PER_BATCH // max(row_bytes, 1)
    return max(1, min(ROWS_PER_BATCH, fitting))


def id_schema(kind: pa.DataType) -> pa.Schema:
    """Return the schema of an id file: the original id of each row, int64 or string."""
    return pa.schema([pa.field("id", kind, nullable=False)])
