"""Feature rows in .npy files."""

import io
import os
from math import prod
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffmm_dist import storage
from diffmm_dist.data.checks import refuse_half_integers
from diffmm_dist.errors import UserError, one_line

_MAGIC = b"\x93NUMPY"
_LARGEST_HEADER = 64 << 10  # of plain rows it takes 118 bytes
_OTHERS = {b"PK": "a zip archive, such as .npz", b"\x80": "a pickle", b"\x89HDF": "HDF5", b"PAR1": "Parquet"}


class _Header(NamedTuple):
    """What a .npy file says of itself: where its numbers start, and what they are."""

    offset: int
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]


def open_rows(uri: str, *, kinds: str, needed: str) -> npt.NDArray[Any]:
    """Open rows of numbers (n, width), without pickle: mapped from a disk, read from a store.

    Args:
        uri: the file.
        kinds: NumPy's letters for the kinds of numbers that will do.
        needed: what they are, in words.

    Raises:
        UserError: it is no .npy file, holds something else, or is too short for what it claims to hold.
    """
    with storage.open_file(uri) as file:
        header = _header(uri, file)
        shape, dtype = header.shape, header.dtype
        if dtype.kind in "iuV" and dtype.itemsize == 2:  # NumPy writes bfloat16 as two bytes without a type
            refuse_half_integers(uri, str(dtype))
        if len(shape) != 2 or shape[1] < 1 or dtype.kind not in kinds:
            raise UserError(f"{uri} holds {_kind_name(dtype)} of shape {shape}; {needed} (items, width) are needed")
        size = file.seek(0, io.SEEK_END) - header.offset
        claimed = prod(shape) * dtype.itemsize
        if size < claimed:
            raise UserError(
                f"{uri} is cut off: it claims {claimed:,} bytes of {dtype} and holds {size:,}; copy it again"
            )
        values: npt.NDArray[Any]
        if storage.is_remote(uri) or claimed == 0:  # nothing cannot be mapped
            file.seek(header.offset)
            values = np.frombuffer(file.read(claimed), dtype)
        else:
            values = np.memmap(os.path.abspath(uri), dtype, "r", header.offset, prod(shape))
        return values.reshape(shape[::-1]).T if header.is_fortran else values.reshape(shape)


def _header(uri: str, file: IO[bytes]) -> _Header:
    """Read the header of a .npy file."""
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8:
        what = next((f"; it is {what}" for mark, what in _OTHERS.items() if start.startswith(mark)), "")
        raise UserError(f"{uri} is not a readable .npy file{what}; save the array with numpy.save")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if start[6] not in (1, 2, 3) or length > _LARGEST_HEADER:
        raise UserError(
            f"{uri} is not a readable .npy file: its header is of version {start[6]} and {length:,} bytes long; save "
            "the array with numpy.save"
        )
    file.seek(0)
    version = np.lib.format.read_magic(file)
    try:
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file, max_header_size=_LARGEST_HEADER)
    except (Exception, RecursionError) as error:  # the header is a Python expression, and can be wrong in many ways
        raise UserError(
            f"{uri} is not a readable .npy file: its header is damaged ({one_line(error)[:100]})"
        ) from error
    if dtype.hasobject:
        raise UserError(f"{uri} is not a readable .npy file: it holds Python objects; save an array of numbers")
    if not all(type(side) is int and 0 <= side < 2**62 for side in shape):
        raise UserError(f"{uri} is not a readable .npy file: it claims an impossible shape; save it with numpy.save")
    return _Header(file.tell(), shape, is_fortran, dtype)


def _kind_name(dtype: np.dtype[Any]) -> str:
    """Return what an array holds, in a word or two."""
    return "composed values" if dtype.names or dtype.subdtype else str(dtype)
