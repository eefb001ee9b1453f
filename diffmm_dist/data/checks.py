"""Checks of ids and features, the same whether they are written or read."""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from diffmm_dist.errors import UserError

_ENOUGH_BITS = 32  # values, before a pattern is seen in them


def check_ids(ids: npt.NDArray[np.int64], count: int, *, kind: str, where: str) -> None:
    """Raise a ``UserError`` naming the first id that is not in ``0 .. count - 1``."""
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        bad = np.flatnonzero((ids < 0) | (ids >= count))
        raise UserError(
            f"{where}: {kind} id {ids[bad[0]]} in row {bad[0]} is out of range; there are {count} {kind}s, "
            f"numbered from 0 ({bad.size} such rows)"
        )


def check_finite(
    rows: npt.NDArray[Any], *, modality: str, first_row: int = 0, name_of_item: Callable[[int], str] | None = None
) -> None:
    """Raise a ``UserError`` naming the modality and the first item whose features hold NaN or infinity.

    Args:
        rows: features of consecutive items.
        modality: whose they are.
        first_row: the first item's row.
        name_of_item: what the item of a row is called in the raw data; the row itself where there is no other name.
    """
    found = first_not_finite(rows)
    if found is not None:
        row, kind, count = found
        item = f"row {first_row + row}"
        if name_of_item is not None:
            item = f"{name_of_item(first_row + row)} ({item})"
        raise UserError(
            f"modality '{modality}': the features of item {item} hold {kind} ({count} such rows "
            "in this block); clean or impute them first"
        )


def first_not_finite(rows: npt.NDArray[Any]) -> tuple[int, str, int] | None:
    """Return the first row that holds NaN or infinity, which of them, and how many rows do; None if there is none."""
    finite = np.isfinite(rows)
    if finite.all():
        return None
    bad = np.flatnonzero(~finite.all(axis=1))
    return int(bad[0]), "NaN" if np.isnan(rows[bad[0]]).any() else "infinity", int(bad.size)


def storable(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return float16 as it is and any other numbers as float32."""
    with np.errstate(over="ignore"):  # what leaves float32 becomes infinite, and is reported as that
        return np.asarray(rows, dtype=rows.dtype if rows.dtype == np.float16 else np.float32)


def looks_like_bits(values: npt.NDArray[Any]) -> bool:
    """Tell whole numbers that are the bits of 16-bit floats from such that count or measure something.

    The bits of ordinary numbers of either sign, as bfloat16 or float16, lie in two narrow ranges, with nothing between
    them but zeros.

    Args:
        values: feature rows.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(flat).all() or (flat != np.floor(flat)).any() or flat.min() < -(2**15) or flat.max() >= 2**16:
        return False
    bits = flat.astype(np.int64) & 0xFFFF
    size, is_negative = bits & 0x7FFF, bits >= 2**15
    counted = size > 0
    if counted.sum() < _ENOUGH_BITS:
        return False
    as_bfloat16 = (size[counted] >= 0x3580) & (size[counted] < 0x4480)  # 2^-20 to 2^10
    as_float16 = (size[counted] >= 0x0400) & (size[counted] < 0x6400)  # 2^-14 to 2^10
    both_signs = 0.05 < is_negative[counted].mean() < 0.95
    return bool(as_bfloat16.mean() > 0.99 or (both_signs and as_float16.mean() > 0.99))


def refuse_half_integers(where: str, kind: str) -> NoReturn:
    """Raise a ``UserError`` about integers that are, or may be, the bits of 16-bit floats."""
    raise UserError(
        f"{where}: {kind} may be the bits of bfloat16 or float16 numbers, so store them as float32 first: "
        "(values.astype('uint32') << 16).view('float32') for bits of bfloat16, values.view('float16') for bits of "
        "float16, values.astype('float32') for whole numbers that are meant as such"
    )
