"""Writing a dataset piece by piece, in memory bounded by one piece, and putting it in place when it is complete."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data import schema
from diffmm_dist.data.checks import check_finite, check_ids
from diffmm_dist.data.schema import Ids, InteractionFile, Manifest, Modality, Partition, RowFile, Split
from diffmm_dist.errors import UserError, one_line

Ints = npt.NDArray[np.int64]


@contextmanager
def dataset_writer(uri: str, *, num_users: int, num_items: int, force: bool = False) -> Iterator["DatasetWriter"]:
    """Write a dataset; it appears at ``uri`` when the block ends well and leaves no trace otherwise.

    Args:
        uri: folder or s3:// prefix.
        num_users: U.
        num_items: I.
        force: replace a dataset that is already there.

    Raises:
        UserError: the place is taken or cannot be written.
    """
    with storage.staged_folder(uri, marker=schema.MANIFEST, force=force) as staging, ExitStack() as files:
        writer = DatasetWriter(staging, files, num_users=num_users, num_items=num_items)
        yield writer
        files.close()
        storage.write_record(storage.join(staging, schema.MANIFEST), writer.manifest().model_dump(mode="json"))


class DatasetWriter:
    """Appends interactions, features and ids to the files of one dataset; see ``dataset_writer``."""

    def __init__(self, uri: str, stack: ExitStack, *, num_users: int, num_items: int) -> None:
        self._uri = uri
        self._stack = stack
        self.num_users = num_users
        self.num_items = num_items
        self.made_by: dict[str, Any] = {}
        self.partition: tuple[Literal["metis", "random"], dict[str, dict[str, float]]] | None = None
        self._cuts: list[tuple[int, int]] = []
        self._files: dict[str, list[_File]] = {}
        self.begin_part(0, 0)

    def begin_part(self, user_start: int, item_start: int) -> None:
        """Close the files so far; what is appended from here on goes to the files of the next part.

        Args:
            user_start: the first user row of the part.
            item_start: the first item row of the part.
        """
        for files in self._files.values():
            files[-1].close()
        self._cuts.append((user_start, item_start))
        for split in schema.SPLITS:
            self._file(f"interactions/split={split}/part", schema.INTERACTIONS)

    def add_interactions(self, split: Split, users: Ints, items: Ints) -> None:
        """Append interactions, int64 (E,) each, sorted by user and not before the users already appended."""
        for ids, count, kind in ((users, self.num_users, "user"), (items, self.num_items, "item")):
            check_ids(ids, count, kind=kind, where=f"the {split} interactions")
        self._file(f"interactions/split={split}/part", schema.INTERACTIONS).write([pa.array(users), pa.array(items)])

    def add_features(self, modality: str, rows: npt.NDArray[Any]) -> None:
        """Append feature rows of the next items, float16 or float32 (n, width)."""
        kind = f"items/modality={modality}/part"
        check_finite(rows, modality=modality, first_row=self._rows(kind))
        file = self._file(kind, schema.feature_schema(rows.shape[1], str(rows.dtype)))
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
        file.write([pa.FixedSizeListArray.from_arrays(flat, type=file.schema.field(0).type)])

    def add_ids(self, kind: str, ids: pa.Array) -> None:
        """Append original ids (int64 or string) of the next ``users`` or ``items``."""
        self._file(f"ids/{kind}", schema.id_schema(ids.type)).write([ids])

    def add_order(self, kind: str, rows: Ints) -> None:
        """Append the numbers that the next ``users`` or ``items`` have in the dataset that is partitioned."""
        self._file(f"order/{kind}", schema.id_schema(pa.int64())).write([pa.array(rows)])

    def manifest(self) -> Manifest:
        """Check that all rows are there and describe them."""
        names = [kind.split("=")[1].removesuffix("/part") for kind in self._files if kind.startswith("items/")]
        for name in names:
            rows = self._rows(f"items/modality={name}/part")
            if rows != self.num_items:
                raise UserError(
                    f"modality '{name}' has {rows} feature rows but there are {self.num_items} items; "
                    "give one row per item"
                )
        return Manifest(
            num_users=self.num_users,
            num_items=self.num_items,
            interactions={split: self._interaction_files(split) for split in schema.SPLITS},
            modalities={name: self._modality(name) for name in names},
            user_ids=self._id_entry("users", self.num_users),
            item_ids=self._id_entry("items", self.num_items),
            partition=self._partition(),
            made_by=self.made_by,
        )

    def _interaction_files(self, split: Split) -> tuple[InteractionFile, ...]:
        bounds = [start for start, _ in self._cuts] + [self.num_users]
        files = self._files[f"interactions/split={split}/part"]
        return tuple(
            InteractionFile(**file.entry(), user_start=start, user_stop=stop)
            for file, (start, stop) in zip(files, pairwise(bounds), strict=True)
        )

    def _modality(self, name: str) -> Modality:
        kind = f"items/modality={name}/part"
        value = self._files[kind][0].schema.field(0).type
        return Modality(
            width=value.list_size,
            dtype="float16" if value.value_type == pa.float16() else "float32",
            files=self._row_files(kind),
        )

    def _id_entry(self, kind: str, count: int) -> Ids:
        assert self._rows(f"ids/{kind}") == count
        is_number = self._files[f"ids/{kind}"][0].schema.field(0).type == schema.ID_TYPES["int64"]
        return Ids(dtype="int64" if is_number else "string", files=self._row_files(f"ids/{kind}"))

    def _partition(self) -> Partition | None:
        if self.partition is None:
            return None
        method, report = self.partition
        return Partition(
            method=method,
            user_bounds=(*(start for start, _ in self._cuts), self.num_users),
            item_bounds=(*(start for _, start in self._cuts), self.num_items),
            user_order=self._row_files("order/users"),
            item_order=self._row_files("order/items"),
            report=report,
        )

    def _row_files(self, kind: str) -> tuple[RowFile, ...]:
        files = self._files[kind]
        starts = accumulate((file.rows for file in files[:-1]), initial=0)
        return tuple(RowFile(**file.entry(), row_start=start) for file, start in zip(files, starts, strict=True))

    def _rows(self, kind: str) -> int:
        return sum(file.rows for file in self._files.get(kind, ()))

    def _file(self, kind: str, file_schema: pa.Schema) -> "_File":
        """Return the file of a kind that belongs to the present part, opening it where there is none yet."""
        files = self._files.setdefault(kind, [])
        path = f"{kind}-{len(self._cuts) - 1:05d}.arrow"
        if not files or files[-1].path != path:
            file = _File(storage.join(self._uri, path), path, file_schema)
            self._stack.callback(file.close)
            files.append(file)
        return files[-1]


class _File:
    """One Arrow IPC file that is being written, with its row count and checksum."""

    def __init__(self, uri: str, path: str, file_schema: pa.Schema) -> None:
        self.path = path
        self.schema = file_schema
        self.rows = 0
        self._uri = uri
        self._sink = _HashingSink(storage.open_output(uri))
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), file_schema, options=options)

    def write(self, columns: list[pa.Array]) -> None:
        table = pa.Table.from_arrays(columns, schema=self.schema)
        with self._explained():
            self._writer.write_table(table, max_chunksize=schema.rows_per_batch(self.schema))
        self.rows += table.num_rows

    def close(self) -> None:
        if not self._sink.closed:
            with self._explained():
                self._writer.close()
                self._sink.close()

    def entry(self) -> Mapping[str, Any]:
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
