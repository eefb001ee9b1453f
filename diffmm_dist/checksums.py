"""Checksums that are made while something is written or read anyway."""

import hashlib
import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Annotated

from pydantic import Field

Checksum = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]  # a SHA-256 in hexadecimal, and nothing else
_PIECE = 1 << 20
_MOST_WAITING = 4  # pieces, of which a file of ours has some of at most 4 MiB


class HashedReader(io.RawIOBase):
    """A file that is hashed as it is read, so that its checksum costs no second pass.

    Every byte is hashed once, in the order of the file; what a reader jumps over is read for the hash alone. A thread
    does so while the reader goes on, a few pieces behind it.

    Args:
        source: the file, which can seek.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._digest = hashlib.sha256()
        self._taken = 0  # bytes from the file's start
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checksum")
        self._waiting: deque[Future[None]] = deque()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._source.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place counted from the file's start, this place or the file's end; return it."""
        return self._source.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, as many as asked for unless the file ends."""
        start = self._source.tell()
        data = self._source.read(size)
        if start > self._taken:
            self._take_until(start)
            self._source.seek(start + len(data))
        self._take_in(memoryview(data)[self._taken - start :])
        return data

    def hexdigest(self) -> str:
        """Return the SHA-256 of the whole file, in hexadecimal, reading what is still to be hashed."""
        self._take_until(None)
        self._wait(0)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Give up what is still to be hashed; the source stays open."""
        self._thread.shutdown(cancel_futures=True)
        super().close()

    def _take_until(self, stop: int | None) -> None:
        self._source.seek(self._taken)
        while stop is None or self._taken < stop:
            piece = self._source.read(_PIECE if stop is None else min(_PIECE, stop - self._taken))
            if not piece:
                return
            self._take_in(piece)

    def _take_in(self, data: bytes | memoryview) -> None:
        self._waiting.append(self._thread.submit(self._digest.update, data))
        self._taken += len(data)
        self._wait(_MOST_WAITING)

    def _wait(self, most: int) -> None:
        """Wait until no more than so many pieces are still to be hashed."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()


def file_sha256(file: IO[bytes]) -> str:
    """Return the SHA-256 of what is left of a file, in hexadecimal."""
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()
