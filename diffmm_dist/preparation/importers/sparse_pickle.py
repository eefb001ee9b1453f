"""Sparse matrices from pickles, read by a process of its own that may take only so much memory and time.

The pickle is not run (``pickled``), and every array that it holds is checked before anything is computed from it; the
limits are there for what nobody has thought of.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.preparation.importers.pickled import PickledMatrix, RefusedPickle, load

Ints = npt.NDArray[np.int64]

LARGEST_SIDE = 2**31 - 1
_ROWS_ALLOWED = 1_000_000  # users or items that a matrix may have without saying anything of most of them
_ROWS_PER_ENTRY = 16
_MEMORY = 1 << 30  # bytes that the process may take besides those that grow with the file
_MEMORY_PER_BYTE = 48  # entries of one byte become pairs of two 64-bit numbers, sorted
_LARGEST_FILE = 4 << 30
_SECONDS = 600


@dataclass(frozen=True)
class Pattern:
    """Where a matrix is not zero.

    Attributes:
        num_rows: R.
        num_columns: C.
        num_zeros: zeros that are stored, not counting what pads blocks and diagonals.
        keys: ``row * C + column`` of each such place, ascending and each once, int64.
    """

    num_rows: int
    num_columns: int
    num_zeros: int
    keys: Ints

    @classmethod
    def loaded(cls, num_rows: int, num_columns: int, num_zeros: int, place: str) -> "Pattern":
        """Return one whose keys lie in a file."""
        return cls(num_rows, num_columns, num_zeros, np.load(place, mmap_mode="r"))

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.num_rows, self.num_columns

    @property
    def rows(self) -> Ints:
        """Row of each place, int64."""
        return self.keys // self.num_columns

    @property
    def columns(self) -> Ints:
        """Column of each place, int64."""
        return self.keys % self.num_columns


def read_patterns(files: Mapping[str, str], folder: str) -> dict[str, "Pattern | str"]:
    """Read pickled matrices in another process.

    Args:
        files: local paths of the pickles, by what they are called in errors.
        folder: a temporary folder for what comes back.

    Returns:
        For each name the matrix, or a sentence about what is wrong with it.
    """
    found: dict[str, Pattern | str] = {}
    for name, path in files.items():
        if os.path.getsize(path) > _LARGEST_FILE:
            found[name] = f"{name} is larger than {_LARGEST_FILE >> 30} GiB; use `prepare tables` for so many"
    wanted = {name: path for name, path in files.items() if name not in found}
    return found | (_in_another_process(wanted, folder) if wanted else {})


def _in_another_process(files: Mapping[str, str], folder: str) -> dict[str, "Pattern | str"]:
    size = max(os.path.getsize(path) for path in files.values())
    limit = min(_MEMORY + _MEMORY_PER_BYTE * size, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(limit), folder, json.dumps(dict(files))],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {name: f"reading {name} takes longer than {_SECONDS // 60} minutes; is this a matrix?" for name in files}
    answer = _answer(done.stdout)
    if answer is None:
        failed = f"failed, within {limit / 2**30:.1f} GiB of memory; save the matrix again with pickle.dump(matrix)"
        return {name: f"reading {name} {failed}" for name in files}
    return {name: told if isinstance(told, str) else Pattern.loaded(*told) for name, told in answer.items()}


def _answer(text: bytes) -> Any:
    """Return what the process has said, None if it did not come to its end."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _main(limit: str, folder: str, files: str) -> None:
    """Read the pickles in this process and say what came out."""
    resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    answer: dict[str, Any] = {}
    for number, (name, path) in enumerate(json.loads(files).items()):
        try:
            pattern = read_pattern(path, name)
        except UserError as error:
            answer[name] = str(error)
        else:
            place = os.path.join(folder, f"{number}.npy")
            np.save(place, pattern.keys)
            answer[name] = (*pattern.shape, pattern.num_zeros, place)
    print(json.dumps(answer))


def read_pattern(path: str, name: str) -> Pattern:
    """Read one pickled matrix in this process.

    Args:
        path: the file.
        name: what it is called in errors.

    Raises:
        UserError: it is no pickle, or holds anything else than a sparse matrix.
        MemoryError: this process may not take what it needs.
    """
    try:
        loaded = load(Path(path).read_bytes())
    except RefusedPickle as error:
        raise UserError(f"refusing the pickle {name}: {error}; convert it on a machine where you trust it") from error
    except MemoryError:
        raise
    except Exception as error:  # what is no pickle can fail in many ways
        raise UserError(f"{name} is not a readable pickle: {one_line(error)}") from error
    if not isinstance(loaded, PickledMatrix):
        raise UserError(f"{name} holds no sparse matrix; save one with pickle.dump(matrix)")
    try:
        return _pattern(loaded, name)
    except _Damage as error:
        raise UserError(f"{name} holds a damaged sparse matrix: {one_line(error)}; save it again") from error


class _Damage(Exception):
    """What is wrong with a matrix, in words."""


def _pattern(matrix: PickledMatrix, name: str) -> Pattern:
    num_rows, num_columns = shape = _shape(matrix.attributes)
    if min(shape) < 1:
        raise UserError(f"{name} holds a matrix of {num_rows} users and {num_columns} items; both are needed")
    if max(shape) > LARGEST_SIDE:
        raise UserError(f"{name} holds a matrix of {num_rows:,} users and {num_columns:,} items, which is too large")
    rows, columns, values = _ENTRIES[matrix.format](matrix.attributes, _numbers(matrix.attributes, "data"), shape)
    for kind, ids, count in (("user", rows, num_rows), ("item", columns, num_columns)):
        if ids.size and not 0 <= ids.min() <= ids.max() < count:
            bad = ids[(ids < 0) | (ids >= count)][0]
            raise UserError(f"{name}: {kind} id {bad} is out of range; the matrix has {count} {kind}s")
    _check_values(rows, columns, values, name)
    present = values != 0
    num_entries = int(present.sum())
    _check_emptiness(shape, num_entries, name)
    keys = np.unique(rows[present] * num_columns + columns[present])
    return Pattern(num_rows, num_columns, values.size - num_entries, keys)


def _check_values(rows: Ints, columns: Ints, values: npt.NDArray[Any], name: str) -> None:
    """Refuse what cannot say that there was an interaction."""
    unfit = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if unfit.size:
        first = unfit[0]
        raise UserError(
            f"{name}: the entry of user {rows[first]} and item {columns[first]} is {values[first]} ({unfit.size} such "
            "entries); an interaction is a positive number, so drop or mend the others"
        )


def _check_emptiness(shape: tuple[int, int], entries: int, name: str) -> None:
    """Refuse a matrix that is nearly all emptiness: what is made of it grows with its sides."""
    for kind, count in zip(("users", "items"), shape, strict=True):
        if count > max(_ROWS_ALLOWED, _ROWS_PER_ENTRY * entries):
            raise UserError(
                f"{name} claims {count:,} {kind} but holds {entries:,} interactions; leave those without any out"
            )


def _shape(attributes: Mapping[str, Any]) -> tuple[int, int]:
    shape = attributes.get("_shape", attributes.get("shape"))
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(size) is int for size in shape):
        raise _Damage("it has no shape of two whole numbers")
    return shape


def _numbers(attributes: Mapping[str, Any], name: str, dimensions: int | None = None) -> npt.NDArray[Any]:
    """Return an array of numbers that must be there."""
    values = attributes.get(name)
    if not isinstance(values, np.ndarray):
        raise _Damage(f"its '{name}' is no array of numbers")
    if dimensions is not None and values.ndim != dimensions:
        raise _Damage(f"its '{name}' has {values.ndim} dimensions, where {dimensions} are needed")
    return values


def _whole(values: Any, name: str) -> Ints:
    """Return one dimension of whole numbers as int64."""
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iu":
        raise _Damage(f"its '{name}' must be one dimension of whole numbers")
    if values.dtype.kind == "u" and values.size and values.max() > LARGEST_SIDE:
        raise _Damage(f"its '{name}' holds the number {values.max()}")
    return values.astype(np.int64)


Entries = tuple[Ints, Ints, npt.NDArray[Any]]  # rows, columns and values


def _coo(attributes: Mapping[str, Any], data: npt.NDArray[Any], _: tuple[int, int]) -> Entries:
    coords = attributes.get("coords")
    if coords is None:  # as SciPy kept them before 1.13
        coords = attributes.get("row"), attributes.get("col")
    if not isinstance(coords, tuple) or len(coords) != 2:
        raise _Damage("it does not have two coordinates")
    rows, columns = (_whole(ids, name) for ids, name in zip(coords, ("row", "col"), strict=True))
    if data.ndim != 1 or not rows.size == columns.size == data.size:
        raise _Damage(f"it has {rows.size} rows, {columns.size} columns and {data.size} values")
    return rows, columns, data


def _compressed(attributes: Mapping[str, Any], data: npt.NDArray[Any], outer: int) -> tuple[Ints, Ints]:
    """Return the outer and inner numbers of the values (n, ...) that are kept row after row, or column after column."""
    pointers, inner = _whole(attributes.get("indptr"), "indptr"), _whole(attributes.get("indices"), "indices")
    if pointers.size != outer + 1 or pointers[0] != 0 or (np.diff(pointers) < 0).any():
        raise _Damage(f"its 'indptr' must hold {outer + 1:,} numbers that start from 0 and never fall")
    stored = int(pointers[-1])
    if data.ndim < 1 or not stored <= min(inner.size, data.shape[0]):
        raise _Damage(f"its 'indptr' says {stored:,} values, but it has {inner.size:,} indices")
    return np.repeat(np.arange(outer), np.diff(pointers)), inner[:stored]


def _csr(attributes: Mapping[str, Any], data: npt.NDArray[Any], shape: tuple[int, int]) -> Entries:
    _numbers(attributes, "data", 1)
    rows, columns = _compressed(attributes, data, shape[0])
    return rows, columns, data[: rows.size]


def _csc(attributes: Mapping[str, Any], data: npt.NDArray[Any], shape: tuple[int, int]) -> Entries:
    rows, columns, values = _csr(attributes, data, (shape[1], shape[0]))
    return columns, rows, values


def _bsr(attributes: Mapping[str, Any], data: npt.NDArray[Any], shape: tuple[int, int]) -> Entries:
    height, width = _numbers(attributes, "data", 3).shape[1:]
    if min(height, width) < 1 or shape[0] % height or shape[1] % width:
        raise _Damage(f"its blocks of {height} x {width} do not fit its shape")
    block_rows, block_columns = _compressed(attributes, data, shape[0] // height)
    blocks, in_rows, in_columns = np.nonzero(data[: block_rows.size])
    rows, columns = block_rows[blocks] * height + in_rows, block_columns[blocks] * width + in_columns
    return rows, columns, data[blocks, in_rows, in_columns]


def _dia(attributes: Mapping[str, Any], data: npt.NDArray[Any], shape: tuple[int, int]) -> Entries:
    offsets = _whole(attributes.get("offsets"), "offsets")
    if _numbers(attributes, "data", 2).shape[0] != offsets.size or np.unique(offsets).size != offsets.size:
        raise _Damage(f"it has {data.shape[0]} diagonals and {offsets.size} different places of diagonals")
    diagonals, columns = np.nonzero(data)
    rows = columns - offsets[diagonals]
    inside = (rows >= 0) & (rows < shape[0]) & (columns < shape[1])
    return rows[inside], columns[inside], data[diagonals, columns][inside]


_ENTRIES = {"coo": _coo, "csr": _csr, "csc": _csc, "bsr": _bsr, "dia": _dia}

if __name__ == "__main__":
    _main(*sys.argv[1:])
