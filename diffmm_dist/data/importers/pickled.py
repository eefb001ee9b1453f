"""What the pickle of a SciPy sparse matrix may look up, each replaced by something that can only make numbers.

NumPy's own constructors would let a pickle make arrays over any memory, arrays of objects, and types that lie about
their contents; the ones here cannot.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from diffmm_dist.errors import UserError

_FORMATS = ("bsr", "coo", "csc", "csr", "dia")
_NUMBERS = "biuf"


class _NumberType:
    """Stands for ``numpy.dtype``: a number, in one of the two byte orders."""

    def __init__(self, name: Any, *flags: Any) -> None:
        self.dtype: np.dtype[Any] = np.dtype(name)
        if self.dtype.kind not in _NUMBERS:
            raise UserError(f"it holds values of type {self.dtype}, and only numbers are read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _NumberArray(np.ndarray[Any, Any]):
    """Stands for ``numpy.ndarray``, which pickles name but do not call; they fill an empty one."""

    def __new__(cls, *arguments: Any) -> "_NumberArray":
        raise UserError("it makes an array by hand")

    @classmethod
    def empty(cls, *arguments: Any) -> "_NumberArray":
        array: _NumberArray = np.ndarray.__new__(cls, (0,), "b")
        return array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, is_fortran, data = state
        super().__setstate__((version, shape, kind.dtype, is_fortran, data))


def _scalar(kind: _NumberType, data: bytes) -> Any:
    return np.frombuffer(data, dtype=kind.dtype)[0]


def _from_buffer(buffer: Any, kind: _NumberType, shape: tuple[int, ...], order: Any) -> npt.NDArray[Any]:
    return np.frombuffer(buffer, dtype=kind.dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """How old pickles write bytes."""
    if encoding != "latin1":
        raise UserError(f"it holds bytes in the encoding {encoding}")
    return text.encode("latin1")


def _bare_matrix(kind: type, base: type, state: None) -> Any:
    """How old pickles make an object that is filled afterwards."""
    if kind not in _SPARSE_CLASSES.values() or base is not object:
        raise UserError(f"it builds a {kind!r} in an unusual way")
    return object.__new__(kind)


_SPARSE_CLASSES = {
    (f"scipy.sparse.{prefix}{name}", f"{name}_{kind}"): getattr(sp, f"{name}_{kind}")
    for name in _FORMATS
    for prefix in ("", "_")  # public in old SciPy, private in new
    for kind in ("matrix", "array")
    if hasattr(sp, f"{name}_{kind}")
}
SPARSE_MATRIX: dict[tuple[str, str], Any] = {
    **_SPARSE_CLASSES,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _NumberArray.empty for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _NumberArray,
    ("numpy", "dtype"): _NumberType,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _bare_matrix,
    ("copy_reg", "_reconstructor"): _bare_matrix,
    ("builtins", "object"): object,
    ("__builtin__", "object"): object,
}
