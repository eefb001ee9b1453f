"""Writing a dataset piece by piece, in memory bounded by one piece, and putting it in place when it is complete."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmm_dist import storage
from diffmm_dist.data import schema
from diffmm_dist.data.checks import check_finite, check_ids
from diffmm_dist.data.schema import Ids, InteractionFile, Manifest, Modality, RowFile, Split
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
        storage.write_json(storage.join(staging, schema.MANIFEST), writer.manifest().model_dump(mode="json"))


class DatasetWriter:
    """Appends interactions, features and ids to the files of one dataset; see ``dataset_writer``."""

    def __init__(self, uri: str, stack: ExitStack, *, num_users: int, num_items: int) -> None:
        self._uri = uri
        self._stack = stack
        self.num_users = num_users
        self.num_items = num_items
        self.made_by: dict[str, Any] = {}
        self._interactions = {
            split: self._open(f"interactions/split={split}/part-00000.arrow", schema.INTERACTIONS)
            for split in schema.SPLITS
        }
        self._features: dict[str, _File] = {}
        self._ids: dict[str, _File] = {}

    def add_interactions(self, split: Split, users: Ints, items: Ints) -> None:
        """Append interactions, int64 (E,) each, sorted by user and not before the users already appended."""
        for ids, count, kind in ((users, self.num_users, "user"), (items, self.num_items, "item")):
            check_ids(ids, count, kind=kind, where=f"the {split} interactions")
        self._interactions[split].write([pa.array(users), pa.array(items)])

    def add_features(self, modality: str, rows: npt.NDArray[Any]) -> None:
        """Append feature rows of the next items, float16 or float32 (n, width)."""
        file = self._features.get(modality)
        check_finite(rows, modality=modality, first_row=file.rows if file else 0)
        if file is None:
            file = self._open(
                f"items/modality={modality}/part-00000.arrow", schema.feature_schema(rows.shape[1], str(rows.dtype))
            )
            self._features[modality] = file
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
        file.write([pa.FixedSizeListArray.from_arrays(flat, type=file.schema.field(0).type)])

    def add_ids(self, kind: str, ids: pa.Array) -> None:
        """Append original ids (int64 or string) of the next ``users`` or ``items``."""
        if kind not in self._ids:
            self._ids[kind] = self._open(f"ids/{kind}-00000.arrow", schema.id_schema(ids.type))
        self._ids[kind].write([ids])

    def manifest(self) -> Manifest:
        """Check that all rows are there and describe them."""
        for modality, file in self._features.items():
            if file.rows != self.num_items:
                raise UserError(
                    f"modality '{modality}' has {file.rows} feature rows but there are {self.num_items} items; "
                    "give one row per item"
                )
        assert self._ids["users"].rows == self.num_users
        assert self._ids["items"].rows == self.num_items
        return Manifest(
            num_users=self.num_users,
            num_items=self.num_items,
            interactions={
                split: (InteractionFile(**file.entry(), user_start=0, user_stop=self.num_users),)
                for split, file in self._interactions.items()
            },
            modalities={
                name: Modality(
                    width=file.schema.field(0).type.list_size,
                    dtype="float16" if file.schema.field(0).type.value_type == pa.float16() else "float32",
                    files=(RowFile(**file.entry(), row_start=0),),
                )
                for name, file in self._features.items()
            },
            user_ids=self._id_entry("users"),
            item_ids=self._id_entry("items"),
            made_by=self.made_by,
        )

    def _id_entry(self, kind: str) -> Ids:
        file = self._ids[kind]
        is_number = file.schema.field(0).type == schema.ID_TYPES["int64"]
        return Ids(dtype="int64" if is_number else "string", files=(RowFile(**file.entry(), row_start=0),))

    def _open(self, path: str, file_schema: pa.Schema) -> "_File":
        file = _File(storage.join(self._uri, path), path, file_schema)
        self._stack.callback(file.close)
        return file


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
            self._writer.write_table(table, max_chunksize=schema.ROWS_PER_BATCH)
        self.rows += table.num_rows

    def close(self) -> None:
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
