"""Reading a prepared dataset."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ValidationError
from torch import Tensor

from diffmm_dist import storage
from diffmm_dist.data import schema
from diffmm_dist.data.checks import check_finite, check_ids
from diffmm_dist.data.schema import FileEntry, Manifest, Split
from diffmm_dist.data.stream import Reading, read_batches
from diffmm_dist.errors import UserError, closest
from diffmm_dist.parallel.ranges import Range
from diffmm_dist.sparse import CSR

Ints = npt.NDArray[np.int64]


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
            reading: how to read files on S3.

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
        if content.get("version") != schema.FORMAT_VERSION:
            raise UserError(
                f"{place} has format version {content.get('version')!r}, this program reads version "
                f"{schema.FORMAT_VERSION}; prepare the dataset again"
            )
        try:
            return cls(uri, Manifest.model_validate(content), reading)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{place} is damaged at '{where}': {first['msg']}; prepare the dataset again") from error

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
        for file in self.manifest.interactions.get(split, ()):
            if file.user_stop <= users.start or file.user_start >= users.stop:
                continue
            uri = storage.join(self.uri, file.path)
            for batch in self._batches(file, schema.INTERACTIONS):
                user_ids, item_ids = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
                check_ids(user_ids, self.num_users, kind="user", where=uri)
                check_ids(item_ids, self.num_items, kind="item", where=uri)
                ours = (user_ids >= users.start) & (user_ids < users.stop)
                yield user_ids[ours], item_ids[ours]

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
        for file in entry.files:
            if file.row_start >= items.stop or file.row_start + file.rows <= items.start:
                continue
            first = file.row_start
            for batch in self._batches(file, schema.feature_schema(entry.width, entry.dtype)):
                values = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, entry.width)
                check_finite(values, modality=modality, first_row=first)
                start, stop = max(first, items.start), min(first + batch.num_rows, items.stop)
                if start < stop:
                    yield start, values[start - first : stop - first]
                first += batch.num_rows

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

    def original_ids(self, kind: str) -> pa.ChunkedArray:
        """Return the original ids of all ``users`` or ``items``, int64 or string, in internal order."""
        ids = self.manifest.user_ids if kind == "users" else self.manifest.item_ids
        expected = schema.id_schema(schema.ID_TYPES[ids.dtype])
        batches: list[pa.RecordBatch] = []
        for file in ids.files:
            batches += self._batches(file, expected)
        count = self.num_users if kind == "users" else self.num_items
        table = pa.Table.from_batches(batches, schema=expected)
        if table.num_rows != count:
            raise UserError(
                f"dataset {self.uri} has {table.num_rows} ids for {count} {kind}; prepare the dataset again"
            )
        return table.column("id")

    def source_rows(self, kind: Literal["users", "items"], rows: Range | None = None) -> Tensor:
        """Return the number that each user or item row had before `partition` reordered them, int64.

        Args:
            kind: users or items.
            rows: which rows, all by default.
        """
        total = self.num_users if kind == "users" else self.num_items
        rows = rows or Range(0, total)
        partition = self.manifest.partition
        if partition is None:
            return torch.arange(*rows)
        parts = [np.empty(0, np.int64)]
        for file in partition.user_order if kind == "users" else partition.item_order:
            start, stop = max(rows.start, file.row_start), min(rows.stop, file.row_start + file.rows)
            if start < stop:
                uri = storage.join(self.uri, file.path)
                batches = list(self._batches(file, schema.id_schema(pa.int64())))
                column = pa.Table.from_batches(batches).column("id").to_numpy()
                check_ids(column, total, kind=kind[:-1], where=uri)
                parts.append(column[start - file.row_start : stop - file.row_start])
        ids = np.concatenate(parts)
        if ids.size != rows.size:
            raise UserError(f"dataset {self.uri} has an order of {ids.size} {kind} for {rows.size}; partition it again")
        return torch.from_numpy(ids.copy())

    def _batches(self, file: FileEntry, expected: pa.Schema) -> Iterator[pa.RecordBatch]:
        return read_batches(self.uri, file, expected=expected, reading=self._reading)

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
        return storage.exists(uri) and storage.sha256(uri) == checksum
