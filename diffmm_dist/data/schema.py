"""The prepared dataset's format: its manifest and the Arrow schemas of its files (docs/data-format.md)."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffmm_dist.checksums import Checksum

FORMAT_NAME: Literal["diffmm_dist dataset"] = "diffmm_dist dataset"
FORMAT_VERSION: Literal[1] = 1
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


class Partition(_Record):
    """How the rows of a dataset were reordered so that neighbours lie in the same part.

    Attributes:
        method: how the parts were found.
        user_bounds: first user row of each part, and the end of the last.
        item_bounds: the same of items.
        user_order: for each user row its number in the dataset that was partitioned.
        item_order: the same of items.
        report: edges, halo rows and balance of the parts.
    """

    method: Literal["metis", "random"]
    user_bounds: Bounds
    item_bounds: Bounds
    user_order: Files
    item_order: Files
    report: Annotated[dict[Name, Annotated[dict[Name, Figure], Field(max_length=_MOST_FIGURES)]], Field(max_length=2)]

    @property
    def num_parts(self) -> int:
        """P."""
        return len(self.user_bounds) - 1


class Manifest(_Record):
    """What a dataset holds; written last, so a folder without it is no dataset."""

    format: Literal["diffmm_dist dataset"] = FORMAT_NAME
    version: Literal[1] = FORMAT_VERSION
    num_users: Annotated[int, Field(ge=1, lt=2**31)]
    num_items: Annotated[int, Field(ge=1, lt=2**31)]
    interactions: dict[Split, Annotated[tuple[InteractionFile, ...], Field(max_length=MOST_FILES)]]
    modalities: Annotated[dict[Name, Modality], Field(max_length=_MOST_MODALITIES)]
    user_ids: Ids
    item_ids: Ids
    partition: Partition | None = None
    made_by: dict[str, Any]

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
        if self.partition is not None:
            yield from self._broken_bounds(self.partition)
        for what, row_files, count in self._row_files():
            if not _covering([(file.row_start, file.row_start + file.rows) for file in row_files], count):
                yield f"its {what} do not lie one after the other from row 0 to row {count:,}"

    def _row_files(self) -> Iterator[tuple[str, tuple[RowFile, ...], int]]:
        """Yield all files that hold a row per user or item: what they hold, the files, and how many rows that is."""
        yield "ids of users", self.user_ids.files, self.num_users
        yield "ids of items", self.item_ids.files, self.num_items
        for name, modality in self.modalities.items():
            yield f"{name} features", modality.files, self.num_items
        if self.partition is not None:
            yield "order of users", self.partition.user_order, self.num_users
            yield "order of items", self.partition.item_order, self.num_items

    def _broken_bounds(self, partition: Partition) -> Iterator[str]:
        if len(partition.user_bounds) != len(partition.item_bounds):
            yield "its parts of users and of items are not equally many"
        for kind, bounds, count in (
            ("users", partition.user_bounds, self.num_users), ("items", partition.item_bounds, self.num_items),
        ):  # fmt: skip
            if not _covering(list(pairwise(bounds)), count):
                yield f"its bounds of {kind} do not rise from 0 to {count:,}"

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
        ]
        if self.partition is not None:
            groups += [self.partition.user_order, self.partition.item_order]
        return [file for group in groups for file in group]

    @property
    def fingerprint(self) -> str:
        """A hash of all contents, independent of where the dataset lies and of who made it when.

        It stands for the contents themselves, since what is read is compared with the checksums in here.
        """
        contents = self.model_dump_json(exclude={"made_by": True, "partition": {"report"}})
        return hashlib.sha256(contents.encode()).hexdigest()


def _covering(ranges: Sequence[tuple[int, int]], count: int) -> bool:
    """Tell whether ranges follow one another without a gap from 0 to ``count``."""
    edges = [0, *(edge for range_ in ranges for edge in range_), count]
    return all(low <= high for low, high in ranges) and all(
        stop == start for stop, start in zip(edges[::2], edges[1::2], strict=True)
    )


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
