"""Local files that are read whole or mapped: regular ones only, and no more of them than is sensible.

A device never ends, and a pipe waits for ever; either may stand under any name.
"""

import os
import stat
from typing import IO

from diffmm_dist.errors import UserError


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        UserError: it is no regular file.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer would block
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, "Is a directory", os.fspath(path))
        if not stat.S_ISREG(mode):
            raise UserError(f"{os.fspath(path)} is no regular file; name a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], *, limit: int) -> bytes:
    """Read a whole file of at most ``limit`` bytes.

    Raises:
        UserError: it is no regular file, or larger.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{os.fspath(path)} is larger than {size_text(limit)}; is this the right file?")
    return data


def size_text(size: int) -> str:
    """Return a number of bytes in words."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
