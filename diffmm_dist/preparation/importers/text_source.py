"""The bytes of a text file, read on by threads that end when nobody wants more, and the header that stands first."""

import codecs
import csv
import io
import threading
from typing import Protocol

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.table_schemas import check_width
from diffmm_dist.regular_files import size_text

_LONGEST_HEADER = 1 << 20


class Readable(Protocol):
    """What bytes come from."""

    def read(self, size: int) -> bytes:
        """Return the next bytes, none at the end."""
        ...


class TextSource(io.RawIOBase):
    """A file that ends early once it is left or a thread is told to stop.

    Arrow reads ahead in threads of its own, which nothing else ends: a small compressed file keeps them at work for
    minutes, and the process cannot end before or aborts.

    Args:
        source: the file.
        stop: set when nobody waits for what is read any more.
    """

    def __init__(self, source: Readable, stop: threading.Event) -> None:
        self._source = source
        self._stop = stop
        self._left = False
        self._peeked = b""
        self._reading = threading.Lock()

    def readable(self) -> bool:
        """Return True."""
        return True

    def peek(self, size: int) -> bytes:
        """Return the next bytes, which are read again later."""
        while len(self._peeked) < size and (more := self._source.read(size - len(self._peeked))):
            self._peeked += more
        return self._peeked

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; none at the end, and none once the file is left."""
        with self._reading:
            if self._left or self._stop.is_set():
                return b""
            if self._peeked:
                data, self._peeked = self._peeked[:size], self._peeked[size:]
                return data
            return self._source.read(size)

    def leave(self) -> None:
        """End the file here; what is being read is waited for."""
        self._left = True
        with self._reading:
            pass


def check_header(uri: str, source: TextSource, *, delimiter: str, encoding: str) -> None:
    """Raise a ``UserError`` unless the first line that is not empty holds the names of a sensible number of columns."""
    beginning = source.peek(_LONGEST_HEADER)
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    text = decoder.decode(beginning).removeprefix("\ufeff").replace("\0", " ")
    lines = io.StringIO(text, newline="")
    try:
        names = next((row for row in csv.reader(lines, delimiter=delimiter) if row), [])
    except csv.Error as error:
        raise UserError(f"cannot read {uri}: its header holds a name that is too long; is this a table?") from error
    if lines.tell() == len(text) and len(beginning) >= _LONGEST_HEADER:
        raise UserError(f"cannot read {uri}: its header is longer than {size_text(_LONGEST_HEADER)}; is this a table?")
    check_width(uri, len(names))
