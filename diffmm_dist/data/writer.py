"""Writing a dataset piece by piece, in memory bounded by one piece, and putting it in place when it is complete."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data import schema
from diffmm_dist.data.checks import check_finite, check_ids
from diffmm_dist.data.schema import (
    Axis,
    AxisParts,
    Ids,
    InteractionFile,
    Manifest,
    Modality,
    Partition,
    RowFile,
    Split,
    Table,
    TableFile,
)
from diffmm_dist.errors import UserError, one_line

Ints = npt.NDArray[np.int64]


@contextmanager
def dataset_writer(
    uri: str,
    *,
    num_users: int,
    num_items: int,
    axes: Mapping[str, int] | None = None,
    bounds: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
) -> Iterator["DatasetWriter"]:
    """Write a dataset; it appears at ``uri`` when the block ends well and leaves no trace otherwise.

    Args:
        uri: folder or address.
        num_users: U.
        num_items: I.
        axes: rows of other axes, by name.
        bounds: of a dataset in parts, by axis, the first row of each part and the end of the last; axes that are not
            here are not cut.
        force: replace a dataset that is already there.

    Raises:
        UserError: the place is taken or cannot be written.
    """
    counts = {"users": num_users, "items": num_items, **(axes or {})}
    with storage.staged_folder(uri, marker=schema.MANIFEST, force=force) as staging, ExitStack() as files:
        writer = DatasetWriter(staging, files, counts, bounds)
        yield writer
        writer.complete()
        files.close()
        storage.write_record(storage.join(staging, schema.MANIFEST), writer.manifest().model_dump(mode="json"))


class DatasetWriter:
    """Appends interactions, features, ids and tables to the files of one dataset; see ``dataset_writer``.

    What is appended to a part comes in the order of its rows. Files of a dataset in parts get whole record batches:
    what is too little for one is kept until more comes, so that pieces may be small.

    Attributes:
        counts: rows of every axis.
        made_by: for the manifest.
        partition: method and report of the parts, for the manifest.
    """

    def __init__(
        self, uri: str, stack: ExitStack, counts: Mapping[str, int], bounds: Mapping[str, Sequence[int]] | None
    ) -> None:
        self.counts = dict(counts)
        self.made_by: dict[str, Any] = {}
        self.partition: tuple[Literal["metis", "random"], dict[str, dict[str, float]]] | None = None
        self._uri = uri
        self._stack = stack
        self._bounds = {axis: tuple(edges) for axis, edges in bounds.items()} if bounds else None
        self._num_parts = 1 if bounds is None else len(bounds["users"]) - 1
        self._tables: dict[str, dict[str, tuple[str, ...]]] = {}
        self._files: dict[str, dict[int, _File]] = {}

    def add_interactions(self, split: Split, users: Ints, items: Ints, *, part: int = 0) -> None:
        """Append interactions, int64 (E,) each, sorted by user and not before the users already appended."""
        for ids, kind in ((users, "user"), (items, "item")):
            check_ids(ids, self.counts[f"{kind}s"], kind=kind, where=f"the {split} interactions")
        self._file(_interactions(split), schema.INTERACTIONS, part).write([pa.array(users), pa.array(items)])

    def add_features(self, modality: str, rows: npt.NDArray[Any], *, part: int = 0) -> None:
        """Append feature rows of the next items, float16 or float32 (n, width)."""
        kind = f"items/modality={modality}/part"
        check_finite(rows, modality=modality, first_row=self._rows(kind))
        file = self._file(kind, schema.feature_schema(rows.shape[1], str(rows.dtype)), part)
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
        file.write([pa.FixedSizeListArray.from_arrays(flat, type=file.schema.field(0).type)])

    def add_ids(self, axis: str, ids: pa.Array, *, part: int = 0) -> None:
        """Append original ids (int64 or string) of the next rows of an axis."""
        self._file(f"ids/{axis}", schema.id_schema(ids.type), part).write([ids])

    def add_order(self, axis: str, rows: Ints, *, part: int = 0) -> None:
        """Append the numbers that the next rows of an axis have in the dataset that is partitioned."""
        self._file(f"order/{axis}", schema.id_schema(pa.int64()), part).write([pa.array(rows)])

    def begin_table(self, name: str, columns: Mapping[str, Sequence[str]]) -> None:
        """Add a table with these columns, each with the axes that it numbers; see ``schema.Table``."""
        self._tables[name] = {column: tuple(axes) for column, axes in columns.items()}

    def add_rows(self, table: str, columns: Sequence[Ints], *, part: int = 0) -> None:
        """Append rows of a table, int64 (n,) of each column."""
        described = self._tables[table]
        for values, (column, axes) in zip(columns, described.items(), strict=True):
            total = sum(self.counts[axis] for axis in axes)
            check_ids(values, total, kind=column, where=f"the table {table}")
        self._file(_table(table), schema.table_schema(described), part).write([pa.array(values) for values in columns])

    def finish(self) -> None:
        """Close all files so far; what comes after must go to others. Few files can be open at a time."""
        for files in self._files.values():
            for file in files.values():
                file.close()

    def complete(self) -> None:
        """Write a file for every part of interactions and tables, also where a part has no rows, and close all."""
        kinds = {_interactions(split): schema.INTERACTIONS for split in schema.SPLITS}
        kinds |= {_table(name): schema.table_schema(columns) for name, columns in self._tables.items()}
        for kind, file_schema in kinds.items():
            for part in range(self._num_parts):
                self._file(kind, file_schema, part)
        self.finish()

    def manifest(self) -> Manifest:
        """Check that all rows are there and describe them."""
        names = [kind.split("=")[1].removesuffix("/part") for kind in self._files if kind.startswith("items/")]
        num_items = self.counts["items"]
        for name in names:
            rows = self._rows(f"items/modality={name}/part")
            if rows != num_items:
                raise UserError(
                    f"modality '{name}' has {rows} feature rows but there are {num_items} items; give one row per item"
                )
        further = {
            axis: Axis(count=count, ids=self._id_entry(axis))
            for axis, count in self.counts.items()
            if axis not in ("users", "items")
        }
        return Manifest(
            version=2 if further or self._tables else 1,
            num_users=self.counts["users"],
            num_items=num_items,
            interactions={split: self._interaction_files(split) for split in schema.SPLITS},
            modalities={name: self._modality(name) for name in names},
            user_ids=self._id_entry("users"),
            item_ids=self._id_entry("items"),
            partition=self._partition(),
            axes=further,
            tables={
                name: Table(columns=columns, files=self._table_files(name)) for name, columns in self._tables.items()
            },
            made_by=self.made_by,
        )

    def _interaction_files(self, split: Split) -> tuple[InteractionFile, ...]:
        bounds = (0, self.counts["users"]) if self._bounds is None else self._bounds["users"]
        files = self._files[_interactions(split)]
        return tuple(
            InteractionFile(**files[part].entry(), user_start=start, user_stop=stop)
            for part, (start, stop) in enumerate(pairwise(bounds))
        )

    def _table_files(self, name: str) -> tuple[TableFile, ...]:
        return tuple(TableFile(**file.entry(), part=part) for part, file in sorted(self._files[_table(name)].items()))

    def _modality(self, name: str) -> Modality:
        kind = f"items/modality={name}/part"
        value = self._any_file(kind).schema.field(0).type
        return Modality(
            width=value.list_size,
            dtype="float16" if value.value_type == pa.float16() else "float32",
            files=self._row_files(kind),
        )

    def _id_entry(self, axis: str) -> Ids:
        kind = f"ids/{axis}"
        assert self._rows(kind) == self.counts[axis]
        is_number = self._any_file(kind).schema.field(0).type == schema.ID_TYPES["int64"]
        return Ids(dtype="int64" if is_number else "string", files=self._row_files(kind))

    def _partition(self) -> Partition | None:
        if self.partition is None or self._bounds is None:
            return None
        method, report = self.partition
        further = {
            axis: AxisParts(bounds=edges, order=self._row_files(f"order/{axis}"))
            for axis, edges in self._bounds.items()
            if axis not in ("users", "items")
        }
        return Partition(
            method=method,
            user_bounds=self._bounds["users"],
            item_bounds=self._bounds["items"],
            user_order=self._row_files("order/users"),
            item_order=self._row_files("order/items"),
            report=report,
            further=further,
        )

    def _row_files(self, kind: str) -> tuple[RowFile, ...]:
        files = [file for _, file in sorted(self._files[kind].items())]
        starts = accumulate((file.rows for file in files[:-1]), initial=0)
        return tuple(RowFile(**file.entry(), row_start=start) for file, start in zip(files, starts, strict=True))

    def _rows(self, kind: str) -> int:
        return sum(file.rows for file in self._files.get(kind, {}).values())

    def _any_file(self, kind: str) -> "_File":
        return next(iter(self._files[kind].values()))

    def _file(self, kind: str, file_schema: pa.Schema, part: int) -> "_File":
        """Return the file of a kind and a part, begun where there is none yet."""
        files = self._files.setdefault(kind, {})
        if part not in files:
            path = f"{kind}-{part:05d}.arrow"
            files[part] = _File(
                storage.join(self._uri, path), path, file_schema, whole_batches=self._bounds is not None
            )
            self._stack.callback(files[part].close)
        return files[part]


def _interactions(split: str) -> str:
    return f"interactions/split={split}/part"


def _table(name: str) -> str:
    return f"tables/{name}/part"


class _File:
    """One Arrow IPC file that is being written, with its row count and checksum; opened with its first rows."""

    def __init__(self, uri: str, path: str, file_schema: pa.Schema, *, whole_batches: bool) -> None:
        self.path = path
        self.schema = file_schema
        self.rows = 0
        self._uri = uri
        self._kept = pa.Table.from_batches([], schema=file_schema)
        self._most_kept = schema.rows_per_batch(file_schema) if whole_batches else 0
        self._sink: _HashingSink | None = None
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def write(self, columns: list[pa.Array]) -> None:
        table = pa.Table.from_arrays(columns, schema=self.schema)
        self.rows += table.num_rows
        if self._most_kept == 0:
            self._write(table)
            return
        kept = pa.concat_tables([self._kept, table])
        whole = kept.num_rows - kept.num_rows % self._most_kept
        if whole:
            self._write(kept.slice(0, whole).combine_chunks())
        self._kept = kept.slice(whole)

    def _write(self, table: pa.Table) -> None:
        with self._explained():
            self._opened().write_table(table, max_chunksize=schema.rows_per_batch(self.schema))

    def _opened(self) -> pa.ipc.RecordBatchFileWriter:
        if self._writer is None:
            self._sink = _HashingSink(storage.open_output(self._uri))
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), self.schema, options=options)
        return self._writer

    def close(self) -> None:
        if self._sink is not None and self._sink.closed:
            return
        with self._explained():
            if self._kept.num_rows:
                self._write(self._kept.combine_chunks())
            self._opened().close()
            assert self._sink is not None
            self._sink.close()

    def entry(self) -> Mapping[str, Any]:
        assert self._sink is not None
        return {"path": self.path, "rows": self.rows, "sha256": self._sink.digest.hexdigest()}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._uri}: {one_line(error)}") from error


class _HashingSink:
    """A file that hashes what is written to it, so that no file is read back for its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._file.close()
