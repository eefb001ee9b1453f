"""Original ids, as any library holds a column of them, and the rows that they have."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.bundles.files import Ints
from diffmm_dist.errors import UserError
from diffmm_dist.words import shown

_MOST_NAMED = 5  # ids that a message repeats


class Ids:
    """The original ids of users or of items.

    Args:
        ids: in row order, int64 or string.
        kind: ``user`` or ``item``, for errors.
    """

    def __init__(self, ids: pa.ChunkedArray, kind: str) -> None:
        self.values = ids
        self.kind = kind

    def __len__(self) -> int:
        return len(self.values)

    @property
    def are_numbers(self) -> bool:
        """Whether they are whole numbers."""
        return bool(pa.types.is_integer(self.values.type))

    def column(self, ids: Any) -> pa.Array:
        """Return ids of whatever kind of column in the type of these.

        Args:
            ids: a list, a numpy array, a column of pandas, polars or pyarrow, or one id.

        Raises:
            UserError: they are no ids, or ids of another kind.
        """
        column = _as_arrow(ids, self.kind)
        if pa.types.is_null(column.type) and not len(column):
            return pa.array([], self.values.type)
        if column.null_count:
            raise UserError(f"{column.null_count:,} of {len(column):,} {self.kind} ids are missing; leave them out")
        if self.are_numbers and pa.types.is_string(column.type):
            others = [text for text in column.to_pylist() if not _is_whole(text)]
            if others:
                raise UserError(f"{self.kind} ids of this bundle are whole numbers, not {named(others)}")
        try:
            return column.cast(self.values.type)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{self.kind} ids of this bundle are whole numbers of 64 bits, not {named(column.to_pylist())}"
            ) from error

    def rows(self, ids: Any) -> Ints:
        """Return the row of each id, int64.

        Raises:
            UserError: naming those that the bundle does not have.
        """
        column = self.column(ids)
        rows = pc.index_in(column, value_set=self.values)
        if rows.null_count:
            unknown = pc.unique(column.filter(rows.is_null())).to_pylist()
            example = f"; its ids look like {shown(self.values[0].as_py())}" if len(self) else ""
            raise UserError(f"the bundle has no {self.kind} {named(unknown)}{example}")
        found: Ints = rows.to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    def rows_once(self, ids: Any) -> Ints:
        """Return the rows of ids, each once, in the order of the ids; the errors are those of ``rows``."""
        return np.array(list(dict.fromkeys(self.rows(ids).tolist())), np.int64)

    def known(self, ids: Any) -> tuple[pa.Array, Ints]:
        """Return the row of each id, minus one for those that the bundle does not have, beside the ids themselves.

        Texts that are no whole numbers are none of the ids of a bundle whose ids are.
        """
        column = _as_arrow(ids, self.kind)
        if self.are_numbers and pa.types.is_string(column.type):
            texts = column
            column = pa.array([text if _is_whole(text) else None for text in texts.to_pylist()], pa.string())
            rows = pc.index_in(column.cast(pa.int64()), value_set=self.values, skip_nulls=True)
            return texts, pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        column = self.column(ids)
        rows = pc.fill_null(pc.index_in(column, value_set=self.values), -1)
        return column, rows.to_numpy(zero_copy_only=False).astype(np.int64)

    def of(self, rows: Ints) -> pa.Array:
        """Return the ids of rows; minus one has a null."""
        taken = self.values.take(pa.array(rows, mask=rows < 0))
        return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken


def named(ids: Sequence[str | int]) -> str:
    """Return the first ids of a list, and how many more there are."""
    more = f" and {len(ids) - _MOST_NAMED:,} more" if len(ids) > _MOST_NAMED else ""
    return ", ".join(shown(one) for one in ids[:_MOST_NAMED]) + more


def _is_whole(text: str) -> bool:
    """Tell a whole number that fits 64 bits."""
    return re.fullmatch(r"-?[0-9]{1,19}", text) is not None and -(2**63) <= int(text) < 2**63


def histories_of(items: Any) -> list[Any] | None:
    """Return the histories of a column of lists or a list of columns, or None if these are the items of one history."""
    if is_one(items):
        return None
    if isinstance(items, list | tuple):
        return None if all(map(is_one, items)) else list(items)
    if isinstance(items, np.ndarray) and items.ndim == 2:
        return list(items)
    try:
        column = _column(items, "item")
    except UserError:
        return None  # which says what it is when its rows are asked for
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return list(column.to_pylist()) if is_list else None


def is_one(ids: Any) -> bool:
    """Tell one id from a column of them."""
    return isinstance(ids, str | int | np.integer)


def _column(ids: Any, kind: str) -> pa.Array:
    """Return a column of any library, whatever it holds."""
    if is_one(ids):
        ids = [ids]
    if isinstance(ids, set | frozenset | Mapping) or hasattr(ids, "columns") or isinstance(ids, pa.Table):
        what = "a set, which has no order," if isinstance(ids, set | frozenset) else "a table"
        raise UserError(f"{what} holds no column of {kind} ids: give a list of them, or the column")
    if hasattr(ids, "to_arrow"):  # a series of polars
        ids = ids.to_arrow()
    elif not isinstance(ids, pa.Array | pa.ChunkedArray | np.ndarray) and not hasattr(ids, "__arrow_array__"):
        ids = ids if hasattr(ids, "dtype") else _listed(ids, kind)
    try:
        column = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, ValueError) as error:
        raise UserError(f"these are no {kind} ids: give a column of whole numbers or of text") from error
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _as_arrow(ids: Any, kind: str) -> pa.Array:
    """Return a column of any library as an array of whole numbers or of text."""
    column = _column(ids, kind)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_null(column.type):
        return column
    raise UserError(f"a column of {column.type} holds no {kind} ids: give whole numbers or text")


def _listed(ids: Any, kind: str) -> list[Any]:
    if isinstance(ids, bytes) or not isinstance(ids, Iterable):
        raise UserError(f"{shown(ids)} is no column of {kind} ids: give a list of them")
    return list(ids)
