"""Reading a prepared dataset."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ValidationError
from torch import Tensor

from diffmm_dist import storage
from diffmm_dist.data import schema
from diffmm_dist.data.checks import check_finite, check_ids
from diffmm_dist.data.schema import FileEntry, InteractionFile, Manifest, RowFile, Split
from diffmm_dist.data.stream import ReadBatch, Reading, read_batches
from diffmm_dist.errors import DamagedError, UserError, closest
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Range
from diffmm_dist.places import check_inside
from diffmm_dist.records import check_seal, unsealed
from diffmm_dist.sparse import CSR
from diffmm_dist.words import damage, shown

Ints = npt.NDArray[np.int64]


class Cursor(NamedTuple):
    """How far a stream of epochs has come; another epoch starts at ``Cursor(epoch)``.

    Attributes:
        epoch: which epoch, from 0.
        file: files of its order that are done.
        batch: record batches done of the file behind them.
    """

    epoch: int = 0
    file: int = 0
    batch: int = 0


class Dataset:
    """A prepared dataset: the manifest at once, the data when asked for.

    Attributes:
        uri: where it is.
        manifest: what it holds.
    """

    def __init__(self, uri: str, manifest: Manifest, reading: Reading | None = None) -> None:
        self.uri = uri
        self.manifest = manifest
        self._reading = reading or Reading()

    @classmethod
    def open(cls, uri: str, reading: Reading | None = None) -> "Dataset":
        """Open a dataset.

        Args:
            uri: where it is.
            reading: how to read files on a store.

        Raises:
            UserError: there is none, or its manifest is not one of ours.
        """
        place = storage.join(uri, schema.MANIFEST)
        if not storage.exists(place):
            what = "has no manifest.json, so it is not a complete dataset" if storage.exists(uri) else "does not exist"
            raise UserError(f"dataset {uri} {what}; make one with `prepare`")
        content = storage.read_json(place)
        if not isinstance(content, dict) or content.get("format") != schema.FORMAT_NAME:
            raise UserError(f"{place} is not a manifest of diffmm_dist; make a dataset with `prepare`")
        if content.get("version") not in schema.FORMAT_VERSIONS:
            known = " and ".join(map(str, schema.FORMAT_VERSIONS))
            raise UserError(
                f"{place} has format version {shown(content.get('version'))}, this program reads versions {known}; "
                "prepare the dataset again, or read it with a newer program"
            )
        try:
            manifest = Manifest.model_validate(unsealed(content))
            check_seal(content)
        except ValidationError as error:
            raise DamagedError(f"{place} {damage(Manifest, error)}; prepare the dataset again") from error
        except ValueError as error:
            raise DamagedError(f"{place} is damaged: {error}; prepare the dataset again") from error
        return cls(uri, manifest, reading)

    @property
    def num_users(self) -> int:
        """U."""
        return self.manifest.num_users

    @property
    def num_items(self) -> int:
        """I."""
        return self.manifest.num_items

    def stream(self, split: Split, users: Range | None = None) -> Iterator[tuple[Ints, Ints]]:
        """Yield the users and items of a split's interactions, int64 (n,) each, in memory that n does not reach.

        Args:
            split: train, valid or test.
            users: the users to read, all by default. Files that hold none of them are not opened.

        Raises:
            UserError: a file is damaged or holds an id out of range.
        """
        users = users or Range(0, self.num_users)
        files = self._files_of(split, users)
        for number, _, rows in self._batches(files, schema.INTERACTIONS):
            yield self._of_users(rows, users, files[number])

    def stream_epoch(
        self, split: Split, cursor: Cursor, *, seed: int, users: Range | None = None
    ) -> Iterator[tuple[Ints, Ints, Cursor]]:
        """Yield the interactions of ``stream`` in an order that each epoch has of its own, from a place in it on.

        Files come in a random order and so do the rows of each record batch; the record batches of a file come as they
        lie there, so that the next one can be fetched ahead. What a cursor has passed is not read again.

        Args:
            split: train, valid or test.
            cursor: the epoch, and how far it has come.
            seed: of the orders.
            users: the users to read, all by default.

        Yields:
            users and items, int64 (n,) each, and the cursor with which an interrupted epoch goes on behind them.

        Raises:
            UserError: a file is damaged or holds an id out of range.
        """
        users = users or Range(0, self.num_users)
        order = RandomStream.of(seed, "stream", split, cursor.epoch)
        files = self._files_of(split, users)
        files = [files[index] for index in _shuffled(order, len(files))][cursor.file :]
        for number, index, rows in self._batches(files, schema.INTERACTIONS, skip=cursor.batch):
            user_ids, item_ids = self._of_users(rows, users, files[number])
            places = _shuffled(order.child(files[number].path, index), len(user_ids))
            yield user_ids[places], item_ids[places], Cursor(cursor.epoch, cursor.file + number, index + 1)

    def _files_of(self, split: Split, users: Range) -> list[InteractionFile]:
        """Return the files of a split that may hold interactions of some users."""
        files = self.manifest.interactions.get(split, ())
        return [file for file in files if file.user_start < users.stop and users.start < file.user_stop]

    def _of_users(self, rows: pa.RecordBatch, users: Range, file: InteractionFile) -> tuple[Ints, Ints]:
        """Return the users and items of a record batch that belong to some users."""
        user_ids, item_ids = (column.to_numpy(zero_copy_only=False) for column in rows.columns)
        uri = storage.join(self.uri, file.path)
        check_ids(user_ids, self.num_users, kind="user", where=uri)
        if user_ids.size and not file.user_start <= user_ids.min() <= user_ids.max() < file.user_stop:
            raise UserError(
                f"{uri} holds other users than {file.user_start} to {file.user_stop - 1}, for which the manifest names "
                "it; prepare the dataset again"
            )
        check_ids(item_ids, self.num_items, kind="item", where=uri)
        if users.size == self.num_users:
            return user_ids, item_ids
        ours = (user_ids >= users.start) & (user_ids < users.stop)
        return user_ids[ours], item_ids[ours]

    def interactions(self, split: Split, users: Range | None = None) -> CSR:
        """Return the interactions of a split as rows of users; row 0 is the first of ``users``.

        The arguments and errors are those of ``stream``.
        """
        users = users or Range(0, self.num_users)
        user_parts: list[Ints] = []
        item_parts: list[Ints] = []
        for user_ids, item_ids in self.stream(split, users):
            user_parts.append(user_ids - users.start)
            item_parts.append(item_ids)
        rows = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *user_parts]))
        columns = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *item_parts]))
        return CSR.from_pairs(rows, columns, num_rows=users.size, num_columns=self.num_items)

    def stream_features(self, modality: str, items: Range | None = None) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield feature rows in item order, float16 or float32 (n, width), each time with the first one's item.

        Args:
            modality: its name.
            items: the items to read, all by default. Files that hold none of them are not opened.

        Raises:
            UserError: there is no such modality, a file is damaged, or a value is not finite.
        """
        if modality not in self.manifest.modalities:
            known = list(self.manifest.modalities)
            raise UserError(
                f"dataset {self.uri} has no modality '{modality}'{closest(modality, known)}; "
                f"it has {', '.join(known) or 'none'}"
            )
        entry = self.manifest.modalities[modality]
        items = items or Range(0, self.num_items)
        files = _overlapping(entry.files, items)
        first = files[0].row_start if files else 0
        for _, _, rows in self._batches(files, schema.feature_schema(entry.width, entry.dtype)):
            values = rows.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, entry.width)
            check_finite(values, modality=modality, first_row=first, name_of_item=partial(self.name_of, "items"))
            start, stop = max(first, items.start), min(first + rows.num_rows, items.stop)
            if start < stop:
                yield start, values[start - first : stop - first]
            first += rows.num_rows

    def features(self, modality: str, items: Range | None = None) -> Tensor:
        """Return the features of a modality, float32 (items, width); the errors are those of ``stream_features``."""
        items = items or Range(0, self.num_items)
        entry = self.manifest.modalities.get(modality)
        out = np.empty((items.size, entry.width if entry else 0), dtype=np.float32)
        filled = 0
        for start, values in self.stream_features(modality, items):
            out[start - items.start : start - items.start + len(values)] = values
            filled += len(values)
        if filled != items.size:
            raise UserError(
                f"dataset {self.uri} has {filled} feature rows of modality '{modality}' for {items.size} items; "
                "prepare the dataset again"
            )
        return torch.from_numpy(out)

    def stream_table(self, name: str, parts: Range | None = None) -> Iterator[tuple[Ints, ...]]:
        """Yield the columns of a table, int64 (n,) each, some rows at a time.

        Args:
            name: the table.
            parts: the parts to read, all by default.

        Raises:
            UserError: there is no such table, a file is damaged, or a number is out of range.
        """
        if name not in self.manifest.tables:
            known = list(self.manifest.tables)
            raise UserError(
                f"dataset {self.uri} has no table '{name}'{closest(name, known)}; it has {', '.join(known) or 'none'}"
            )
        table = self.manifest.tables[name]
        parts = parts or Range(0, self.manifest.num_parts)
        files = [file for file in table.files if parts.start <= file.part < parts.stop]
        totals = [sum(self.manifest.counts[axis] for axis in axes) for axes in table.columns.values()]
        for number, _, rows in self._batches(files, schema.table_schema(table.columns)):
            columns = tuple(column.to_numpy(zero_copy_only=False) for column in rows.columns)
            for values, column, total in zip(columns, table.columns, totals, strict=True):
                check_ids(values, total, kind=column, where=storage.join(self.uri, files[number].path))
            yield columns

    def original_ids(self, kind: str) -> pa.ChunkedArray:
        """Return the original ids of all rows of an axis, such as ``users``, int64 or string, in internal order."""
        dtype = self.manifest.ids_of(kind).dtype
        expected = schema.id_schema(schema.ID_TYPES[dtype])
        table = pa.Table.from_batches(self.stream_ids(kind), schema=expected)
        count = self.manifest.counts[kind]
        if table.num_rows != count:
            raise UserError(
                f"dataset {self.uri} has {table.num_rows} ids for {count} {kind}; prepare the dataset again"
            )
        return table.column("id")

    def stream_ids(self, kind: str) -> Iterator[pa.RecordBatch]:
        """Yield the original ids of an axis, some rows at a time."""
        ids = self.manifest.ids_of(kind)
        for batch in self._batches(ids.files, schema.id_schema(schema.ID_TYPES[ids.dtype])):
            yield batch.rows

    def name_of(self, kind: Literal["users", "items"], row: int) -> str:
        """Return the original id of a user or item row as messages show it, texts in quotes."""
        return shown(self.original_ids(kind)[row].as_py())

    def source_rows(self, kind: str, rows: Range | None = None) -> Tensor:
        """Return the number that each row of an axis had before `partition` reordered them, int64.

        Args:
            kind: the axis, such as ``users``.
            rows: which rows, all by default.
        """
        total = self.manifest.counts[kind]
        rows = rows or Range(0, total)
        partition = self.manifest.partition
        if partition is None or kind not in partition.axes:
            return torch.arange(*rows)
        files = _overlapping(partition.axes[kind].order, rows)
        parts = [np.empty(0, np.int64)]
        for number, _, batch in self._batches(files, schema.id_schema(pa.int64())):
            ids = batch.column(0).to_numpy()
            check_ids(ids, total, kind=kind[:-1], where=storage.join(self.uri, files[number].path))
            parts.append(ids)
        first = files[0].row_start if files else 0
        ids = np.concatenate(parts)[rows.start - first : rows.stop - first]
        if ids.size != rows.size:
            raise UserError(f"dataset {self.uri} has an order of {ids.size} {kind} for {rows.size}; partition it again")
        return torch.from_numpy(ids.copy())

    def _batches(self, files: Sequence[FileEntry], expected: pa.Schema, *, skip: int = 0) -> Iterator[ReadBatch]:
        for file in files:
            check_inside(storage.join(self.uri, file.path), self.uri)
        return read_batches(self.uri, files, expected=expected, reading=self._reading, skip=skip)

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            UserError: naming the files that are missing or differ.
        """
        bad = [file.path for file in self.manifest.files() if not self._matches(file.path, file.sha256)]
        if bad:
            raise UserError(
                f"dataset {self.uri} is damaged: {', '.join(bad)} missing or changed since it was prepared; "
                "prepare it again"
            )

    def _matches(self, path: str, checksum: str) -> bool:
        uri = storage.join(self.uri, path)
        check_inside(uri, self.uri)
        return storage.exists(uri) and storage.sha256(uri) == checksum


def _overlapping(files: Sequence[RowFile], rows: Range) -> list[RowFile]:
    """Return the files that hold some of the rows."""
    return [file for file in files if file.row_start < rows.stop and rows.start < file.row_start + file.rows]


def _shuffled(stream: RandomStream, count: int) -> Ints:
    """Return ``0 .. count - 1`` in a random order."""
    return stream.permute(torch.arange(count), count).numpy()
