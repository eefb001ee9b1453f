"""Reading a file of a store in blocks."""

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_BLOCK = 4 << 20  # bytes of one ranged read
_BLOCKS_AHEAD = 2  # that are asked for before they are needed, both at once


class BlockReader(io.RawIOBase):
    """A file of a store for reading, whose next blocks are fetched by threads while earlier ones are used.

    Args:
        size: bytes of the file.
        fetch: returns the bytes from a start to a stop, of the one version of the file that the reader is for. What it
            raises is raised where the block is needed.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch_range = fetch
        self._place = 0
        self._blocks: dict[int, Future[bytes]] = {}
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="store-block")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place counted from the file's start, this place or the file's end; return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes | memoryview:
        """Return the next bytes, as many as asked for unless the file ends; no copy where one block holds them."""
        stop = self._size if size < 0 else min(self._place + size, self._size)
        if stop <= self._place:
            return b""
        first, last = self._place // _BLOCK, (stop - 1) // _BLOCK
        for number in range(first, min(last + 1 + _BLOCKS_AHEAD, -(-self._size // _BLOCK))):
            if number not in self._blocks:
                self._blocks[number] = self._threads.submit(self._fetch, number)
        parts = []
        for number in range(first, last + 1):
            start = number * _BLOCK
            block = memoryview(self._blocks[number].result())
            parts.append(block[max(self._place - start, 0) : stop - start])
        for number in [number for number in self._blocks if number < first]:
            del self._blocks[number]
        self._place = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fetch(self, number: int) -> bytes:
        start = number * _BLOCK
        return self._fetch_range(start, min(start + _BLOCK, self._size))

    def close(self) -> None:
        """Give up what is still to be fetched."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._blocks.clear()
        super().close()
