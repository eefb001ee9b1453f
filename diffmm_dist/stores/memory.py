"""The memory of this process, for tests and for what need not last."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from diffmm_dist.stores.store import Store


class MemoryStore(Store):
    """The memory of this process, whose files appear as soon as they are opened for writing."""

    @contextmanager
    def replacing(self, path: str) -> Iterator[IO[bytes]]:
        """Write a file that appears when the block ends well, and not at all otherwise."""
        file = _Kept()
        yield file
        self.file_system().pipe_file(path, file.getvalue())


class _Kept(io.BytesIO):
    """What can still be read when a writer on top of it has closed it."""

    def close(self) -> None:
        """Do nothing."""
