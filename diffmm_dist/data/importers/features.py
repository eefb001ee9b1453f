"""Item features of a table or an array, brought into the order of a dataset's items through a file on disk."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.data.checks import first_not_finite, storable
from diffmm_dist.data.importers.arrays import open_rows
from diffmm_dist.data.importers.arrow_tables import Table, id_array
from diffmm_dist.errors import UserError

_ROWS_PER_CHUNK = 16_384


@dataclass(frozen=True)
class FeatureSource:
    """Where the features of one modality are.

    Attributes:
        modality: its name.
        uri: a table, or a .npy file whose row numbers are the item ids.
        item: the table's column of item ids.
        columns: pattern of the columns with the features, None for the only column of lists or else all other columns.
        text_ids: do not take the item ids of a CSV file for numbers.
    """

    modality: str
    uri: str
    item: str
    columns: str | None = None
    text_ids: bool = False


class Features:
    """The features of one modality, to be read once for the ids and once for the values.

    Raises:
        UserError: there is no such table, or none of its columns can be features.
    """

    def __init__(self, source: FeatureSource) -> None:
        self.modality = source.modality
        self._uri = source.uri
        self._item = source.item
        self._array = (
            open_rows(source.uri, kinds="fiu", needed="rows of numbers") if source.uri.endswith(".npy") else None
        )
        if self._array is None:
            self._table = Table(source.uri, text_columns=[source.item] if source.text_ids else ())
            self._table.check_columns([source.item])
            self._columns = _feature_columns(self._table, source)

    def ids(self, kind: pa.DataType) -> pa.Array:
        """Return the ids of the items that have features, as often as they stand there.

        Raises:
            UserError: they are not of the kind (int64 or string) that the interactions have.
        """
        if self._array is not None:
            ids = pa.array(np.arange(len(self._array)))
        else:
            columns = (self._ids_of(batch) for batch in self._table.batches([self._item]))
            parts = [part.drop_null() for part in columns]
            ids = pa.chunked_array(parts).combine_chunks() if parts else pa.array([], kind)
        if ids.type != kind:
            raise UserError(
                f"{self._uri} has item ids of type {ids.type} but the interactions have {kind}; convert one of them, "
                "or pass --string-ids for CSV files"
            )
        return ids

    def gather(self, item_ids: pa.Array, folder: str) -> tuple[npt.NDArray[Any], int]:
        """Return the feature rows of the given items, float16 or float32 (items, width), held in a file.

        Args:
            item_ids: ids of the rows; an item without features has a row of zeros.
            folder: for the file.

        Returns:
            The rows, and how many items have none.

        Raises:
            UserError: a value is not finite, or rows have different widths.
        """
        rows: npt.NDArray[Any] | None = None
        filled = np.zeros(len(item_ids), dtype=bool)
        for ids, values in self._pieces():
            numbers = pc.index_in(ids, value_set=item_ids)
            chosen = pc.is_valid(numbers).to_numpy(zero_copy_only=False)
            places, values = numbers.drop_null().to_numpy(zero_copy_only=False), storable(values[chosen])
            if rows is None:
                place, shape = os.path.join(folder, f"{self.modality}.features"), (len(item_ids), values.shape[1])
                rows = np.memmap(place, dtype=values.dtype, mode="w+", shape=shape)
            self._check(values, item_ids, places)
            rows[places] = values
            filled[places] = True
        if rows is None:
            raise UserError(f"{self._uri} holds no features of modality '{self.modality}'")
        return rows, int((~filled).sum())

    def _check(self, values: npt.NDArray[Any], item_ids: pa.Array, places: npt.NDArray[Any]) -> None:
        found = first_not_finite(values)
        if found is not None:
            row, kind, count = found
            item = item_ids[int(places[row])].as_py()
            raise UserError(
                f"{self._uri}: the {self.modality} features of item {item!r} hold {kind} ({count} such rows in this "
                "block); clean or impute them first"
            )

    def _pieces(self) -> Iterator[tuple[pa.Array, npt.NDArray[Any]]]:
        """Yield item ids and their feature rows."""
        if self._array is not None:
            for start in range(0, len(self._array), _ROWS_PER_CHUNK):
                values = self._array[start : start + _ROWS_PER_CHUNK]
                yield pa.array(np.arange(start, start + len(values))), values
            return
        for batch in self._table.batches([self._item, *self._columns]):
            values, present = self._values(batch)
            ids = self._ids_of(batch)
            usable = pc.and_(pc.is_valid(ids), present)
            yield ids.filter(usable), values[usable.to_numpy(zero_copy_only=False)]

    def _ids_of(self, batch: pa.RecordBatch) -> pa.Array:
        return id_array(batch[self._item], name=self._item, uri=self._uri)

    def _values(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[Any], pa.Array]:
        """Return the feature rows of a batch, zeros where there are none, and which rows there are."""
        columns = [batch[name] for name in self._columns]
        if not _is_list(columns[0].type):
            stacked = np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)
            return stacked, pa.array(np.ones(batch.num_rows, dtype=bool))
        column = columns[0]
        present = pc.is_valid(column)
        widths = pc.unique(pc.list_value_length(column.drop_null())).to_pylist()
        if len(widths) > 1:
            raise UserError(
                f"{self._uri}: lists of {' and '.join(map(str, sorted(widths)[:2]))} numbers in column "
                f"'{self._columns[0]}'; features of one modality have one width"
            )
        flat = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, *(widths or [1]))
        values = np.zeros((batch.num_rows, flat.shape[1]), dtype=flat.dtype)
        values[present.to_numpy(zero_copy_only=False)] = flat
        return values, present


def _feature_columns(table: Table, source: FeatureSource) -> list[str]:
    """Return the one column of lists, or the columns of numbers, that hold the features."""
    others = [field for field in table.schema if field.name != source.item]
    if source.columns is not None:
        others = [field for field in others if fnmatchcase(field.name, source.columns)]
    lists = [field.name for field in others if _is_list(field.type)]
    numbers = [field.name for field in others if _is_number(field.type)]
    if len(lists) == 1:
        return lists
    if not lists and numbers and len(numbers) == len(others):
        return numbers
    found = ", ".join(f"{field.name}: {field.type}" for field in others) or "no column"
    raise UserError(
        f"{source.uri}: the features of modality '{source.modality}' must be one column of lists or only columns of "
        f"numbers, found {found}; choose with --feature-columns {source.modality}=PATTERN"
    )


def _is_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and _is_number(kind.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
