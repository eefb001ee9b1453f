"""The prepared dataset's format: its manifest and the Arrow schemas of its files (docs/data-format.md)."""

import hashlib
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

FORMAT_NAME: Literal["diffmm_dist dataset"] = "diffmm_dist dataset"
FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
ROWS_PER_BATCH = 65_536
FEATURE_BYTES_PER_BATCH = 4 << 20  # fewer rows where they are wide, so that a reader holds little

INTERACTIONS = pa.schema([pa.field("user", pa.int64(), nullable=False), pa.field("item", pa.int64(), nullable=False)])

ID_TYPES = {"int64": pa.int64(), "string": pa.string()}

Natural = Annotated[int, Field(ge=0, lt=2**63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Record):
    """One data file: where it is inside the dataset, how much it holds, and its checksum."""

    # A manifest from elsewhere must not lead out of its dataset.
    path: Annotated[str, Field(pattern=r"^[\w=-][\w=.-]*(/[\w=-][\w=.-]*)*$")]
    rows: Natural
    sha256: str


class InteractionFile(FileEntry):
    """Interactions of the users ``user_start <= user < user_stop``."""

    user_start: Natural
    user_stop: Natural


class RowFile(FileEntry):
    """Rows of consecutive users or items, from ``row_start`` on."""

    row_start: Natural


class Modality(_Record):
    """Features of one modality: one row of ``width`` numbers per item, in item order."""

    width: Annotated[int, Field(ge=1)]
    dtype: Literal["float16", "float32"]
    files: tuple[RowFile, ...]


class Ids(_Record):
    """Original ids, in internal order."""

    dtype: Literal["int64", "string"]
    files: tuple[RowFile, ...]


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
    user_bounds: tuple[Natural, ...]
    item_bounds: tuple[Natural, ...]
    user_order: tuple[RowFile, ...]
    item_order: tuple[RowFile, ...]
    report: dict[str, dict[str, float]]

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
    interactions: dict[Split, tuple[InteractionFile, ...]]
    modalities: dict[Annotated[str, Field(pattern=r"^\w+$")], Modality]
    user_ids: Ids
    item_ids: Ids
    partition: Partition | None = None
    made_by: dict[str, Any]

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
