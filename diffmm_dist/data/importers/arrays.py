"""Feature rows in .npy files."""

from typing import Any

import numpy as np
import numpy.typing as npt

from diffmm_dist import storage
from diffmm_dist.data.checks import refuse_half_integers
from diffmm_dist.errors import UserError, one_line


def open_rows(uri: str, *, kinds: str, needed: str) -> npt.NDArray[Any]:
    """Open rows of numbers (n, width), without pickle: mapped from a disk, read from S3.

    Args:
        uri: the file.
        kinds: NumPy's letters for the kinds of numbers that will do.
        needed: what they are, in words.

    Raises:
        UserError: it is no .npy file, or holds something else.
    """
    try:
        if storage.is_remote(uri):
            with storage.open_file(uri) as file:
                rows: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        else:
            rows = np.load(uri, mmap_mode="r", allow_pickle=False)
    except UserError:
        raise
    except Exception as error:  # numpy raises several kinds for a file that is not its own
        raise UserError(f"{uri} is not a readable .npy file: {one_line(error)}") from error
    if rows.dtype.kind in "iuV" and rows.dtype.itemsize == 2:  # NumPy writes bfloat16 as two bytes without a type
        refuse_half_integers(uri, str(rows.dtype))
    if rows.ndim != 2 or rows.shape[1] < 1 or rows.dtype.kind not in kinds:
        raise UserError(f"{uri} holds {rows.dtype} of shape {rows.shape}; {needed} (items, width) are needed")
    return rows
