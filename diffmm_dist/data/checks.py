"""Checks of ids and features, the same whether they are written or read."""

from typing import Any

import numpy as np
import numpy.typing as npt

from diffmm_dist.errors import UserError


def check_ids(ids: npt.NDArray[np.int64], count: int, *, kind: str, where: str) -> None:
    """Raise a ``UserError`` naming the first id that is not in ``0 .. count - 1``."""
    bad = np.flatnonzero((ids < 0) | (ids >= count))
    if bad.size:
        raise UserError(
            f"{where}: {kind} id {ids[bad[0]]} in row {bad[0]} is out of range; there are {count} {kind}s, "
            f"numbered from 0 ({bad.size} such rows)"
        )


def check_finite(rows: npt.NDArray[Any], *, modality: str, first_row: int = 0) -> None:
    """Raise a ``UserError`` naming the modality and the first feature row that holds NaN or infinity."""
    found = first_not_finite(rows)
    if found is not None:
        row, kind, count = found
        raise UserError(
            f"modality '{modality}': the features of item row {first_row + row} hold {kind} ({count} such rows "
            "in this block); clean or impute them first"
        )


def first_not_finite(rows: npt.NDArray[Any]) -> tuple[int, str, int] | None:
    """Return the first row that holds NaN or infinity, which of them, and how many rows do; None if there is none."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if not bad.size:
        return None
    return int(bad[0]), "NaN" if np.isnan(rows[bad[0]]).any() else "infinity", int(bad.size)


def storable(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return float16 as it is and any other numbers as float32."""
    with np.errstate(over="ignore"):  # what leaves float32 becomes infinite, and is reported as that
        return np.asarray(rows, dtype=rows.dtype if rows.dtype == np.float16 else np.float32)
