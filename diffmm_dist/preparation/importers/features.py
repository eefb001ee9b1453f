"""Item features of a table or an array, checked and kept in a file on disk until the order of the items is known."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.data.checks import first_not_finite, looks_like_bits, refuse_half_integers, storable
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrays import open_rows
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import as_text, count_missing_words, id_array, least, typed_ids
from diffmm_dist.preparation.importers.table_formats import TextOptions
from diffmm_dist.preparation.importers.vectors import choose_columns

_ROWS_PER_CHUNK = 16_384


@dataclass(frozen=True)
class FeatureSource:
    """Where the features of one modality are.

    Attributes:
        modality: its name.
        uri: a table, or a .npy file whose row numbers are the item ids.
        item: the table's column of item ids.
        columns: pattern or names of the columns with the features, None to find them.
    """

    modality: str
    uri: str
    item: str
    columns: str | None = None

    @property
    def is_array(self) -> bool:
        """Whether it is a .npy file."""
        return self.uri.lower().endswith(".npy")


class Features:
    """The features of one modality.

    Args:
        source: where they are.
        text: how CSV files are written.

    Attributes:
        modality: its name.
        notes: sentences about what is used, left out, or might surprise.

    Raises:
        UserError: there is no such table, or it is not clear which of its columns are the features.
    """

    def __init__(self, source: FeatureSource, text: TextOptions | None = None) -> None:
        self.modality = source.modality
        self.notes: list[str] = []
        self._uri = source.uri
        self._item = source.item
        self._array: npt.NDArray[Any] | None = None
        if source.is_array:
            self._array = open_rows(source.uri, kinds="fiub", needed="rows of numbers")
            self._maybe_bits = self._array.dtype.kind in "iu"
            if self._maybe_bits:
                self.notes.append(f"{self.modality}: whole numbers ({self._array.dtype}) are taken as they are")
            return
        self._table = Table(source.uri, text)
        self.notes += self._table.notes
        self._table.check_columns([source.item])
        self._columns = choose_columns(self._table, item=source.item, modality=source.modality, pattern=source.columns)
        self._maybe_bits = self._columns.maybe_bits
        self.notes.append(self._columns.note)

    @property
    def num_rows(self) -> int | None:
        """How many rows a .npy file has, None for a table."""
        return None if self._array is None else len(self._array)

    def read(self, item_ids: pa.Array, folder: str, *, all_items: bool, text_ids: bool) -> None:
        """Read the features of the items with interactions into a file.

        Args:
            item_ids: ids of the items with interactions, int64 or string.
            folder: for the file.
            all_items: read those of other items too.
            text_ids: ids are text, whatever they look like.

        Raises:
            UserError: ids are of another type than those of the interactions, or none is the same; a value is missing
                or not finite; an item has two vectors; or they have different widths.
        """
        ids = self._read_ids(item_ids, text_ids=text_ids)
        known = ids.unique().drop_null()
        common = pc.is_in(known, value_set=item_ids)
        if not pc.any(common).as_py():
            remedy = "check --item and --feature-item" if self._array is None else "row n of a .npy file is item n"
            found = f"such as {least(known)!r}" if len(known) else "of which there are none"
            raise UserError(
                f"{self._uri}: none of the items of the {self.modality} features ({found}) has an interaction (with "
                f"items such as {least(item_ids)!r}); {remedy}"
            )
        self._known = known if all_items else known.filter(common)
        places = pc.fill_null(pc.index_in(ids, value_set=self._known), -1).to_numpy()
        self._note(ids.null_count, "rows of {} features without an item are left out")
        self._note(int((places < 0).sum()) - ids.null_count, "rows of {} features are of items without interaction")
        self._first_rows = np.full(len(self._known), -1, dtype=np.int64)
        self._num_repeated = 0
        self._rows: npt.NDArray[Any] | None = None
        for row, chosen, values in self._pieces():
            self._place(values, places[row + chosen], row + chosen, folder)
        if self._rows is None:
            raise UserError(f"{self._uri}: every item lacks its {self.modality} features; check --feature-columns")
        self._note(self._num_repeated, "rows of {} features repeat an item with the same values")

    @property
    def ids(self) -> pa.Array:
        """The ids of the items that have features, each once."""
        return self._known.filter(pa.array(self._first_rows >= 0))

    def lacking(self, item_ids: pa.Array) -> pa.Array:
        """Return those of the ids that have no features."""
        return item_ids.filter(pc.invert(pc.is_in(item_ids, value_set=self.ids)))

    def rows_of(self, item_ids: pa.Array) -> Iterator[npt.NDArray[Any]]:
        """Yield the features of the given items (n, width), in pieces; zeros where there are none."""
        assert self._rows is not None
        places = pc.fill_null(pc.index_in(item_ids, value_set=self._known), -1).to_numpy(zero_copy_only=False)
        for start in range(0, len(places), _ROWS_PER_CHUNK):
            piece = places[start : start + _ROWS_PER_CHUNK]
            rows = self._rows[np.maximum(piece, 0)]
            rows[(piece < 0) | (self._first_rows[piece] < 0)] = 0
            yield rows

    def _place(
        self, values: npt.NDArray[Any], places: npt.NDArray[Any], rows: npt.NDArray[np.int64], folder: str
    ) -> None:
        """Put the vectors of some rows of the table where their items are, and compare those that are there already."""
        wanted = places >= 0
        values, places, rows = values[wanted], places[wanted], rows[wanted]
        if not len(values):
            return
        if self._maybe_bits:
            self._maybe_bits = False  # the first rows will show it
            if looks_like_bits(values):
                refuse_half_integers(f"{self._uri}: the {self.modality} features", "whole numbers")
        values = storable(values)
        if self._rows is None:
            place, shape = os.path.join(folder, f"{self.modality}.features"), (len(self._known), values.shape[1])
            self._rows = np.memmap(place, dtype=values.dtype, mode="w+", shape=shape)
        if values.shape[1] != self._rows.shape[1]:
            self._columns.refuse_widths([values.shape[1], self._rows.shape[1]])
        self._check_finite(values, places, rows)
        first = np.zeros(len(places), dtype=bool)
        first[np.unique(places, return_index=True)[1]] = True
        first &= self._first_rows[places] < 0
        self._rows[places[first]] = values[first]
        self._first_rows[places[first]] = rows[first]
        self._compare(values[~first], places[~first], rows[~first])

    def _compare(self, values: npt.NDArray[Any], places: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> None:
        assert self._rows is not None
        self._num_repeated += len(places)
        different = np.flatnonzero((self._rows[places] != values).any(axis=1))
        if different.size:
            place, row = int(places[different[0]]), int(rows[different[0]])
            raise UserError(
                f"{self._uri}: item {self._known[place].as_py()!r} has different {self.modality} features in rows "
                f"{self._first_rows[place] + 1} and {row + 1}; keep one of them"
            )

    def _check_finite(self, values: npt.NDArray[Any], places: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> None:
        found = first_not_finite(values)
        if found is not None:
            row, kind, count = found
            what = "NaN or a missing value" if kind == "NaN" else f"{kind} or a number beyond {values.dtype}"
            raise UserError(
                f"{self._uri}: the {self.modality} features of item {self._known[int(places[row])].as_py()!r} hold "
                f"{what} (row {rows[row] + 1}; {count} such rows in this block); clean or impute them first"
            )

    def _pieces(self) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Yield the number of a first row, which rows from it on have features, and these."""
        if self._array is not None:
            for start in range(0, len(self._array), _ROWS_PER_CHUNK):
                values = self._array[start : start + _ROWS_PER_CHUNK]
                yield start, np.arange(len(values)), values
            return
        start = 0
        for batch in self._table.batches(self._columns.names):
            values, present = self._columns.read(batch)
            yield start, np.flatnonzero(present), values
            start += batch.num_rows

    def _read_ids(self, item_ids: pa.Array, *, text_ids: bool) -> pa.ChunkedArray:
        """Return the item of each row, in the type of the ids of the interactions.

        Raises:
            UserError: they are of another type.
        """
        if self._array is not None:
            ids, named = pa.chunked_array([pa.array(np.arange(len(self._array)))]), "row numbers"
        else:
            parts = (batch[self._item] for batch in self._table.batches([self._item]))
            arrays = [id_array(part, name=self._item, uri=self._uri) for part in parts]
            ids, named = pa.chunked_array(arrays, arrays[0].type if arrays else item_ids.type), f"column '{self._item}'"
            self._note(sum(map(count_missing_words, arrays)), "rows of {} features have an item that looks like a "
                       "missing value, such as 'nan'; it is taken as an id")  # fmt: skip
        if text_ids:
            return as_text(ids)
        example = least(ids)
        if not pa.types.is_string(item_ids.type) and self._array is None and self._table.is_text:
            typed, notes = typed_ids(ids, column=self._item, uri=self._uri)
            self.notes += notes
            if pa.types.is_string(typed.type):
                example = least(ids.filter(pc.invert(pc.match_substring_regex(ids, "^(0|-?[1-9][0-9]*)$"))))
            ids = typed
        if ids.type != item_ids.type:
            remedy = "pass --string-ids to make text of both" if self._array is None else "give a table with item ids"
            raise UserError(
                f"{self._uri}: the item ids of the {self.modality} features ({named}) are {_kind(ids.type)} such as "
                f"{example!r}, but those of the interactions are {_kind(item_ids.type)} such as {least(item_ids)!r}; "
                f"{remedy}"
            )
        return ids

    def _note(self, count: int, sentence: str) -> None:
        if count:
            self.notes.append(f"{count:,} {sentence.format(self.modality)}")


def _kind(kind: pa.DataType) -> str:
    return "text" if pa.types.is_string(kind) else "whole numbers"
