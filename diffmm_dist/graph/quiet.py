"""Libraries that write to the terminal, kept quiet."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what a library writes to standard output and error, from C++ too, out of sight, and show it if it fails."""
    with tempfile.TemporaryFile() as kept, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        saved = _copies_of_streams()
        try:
            for number in saved:
                os.dup2(kept.fileno(), number)
            with redirect_stdout(None), redirect_stderr(None):
                yield
        except BaseException:
            kept.seek(0)
            with suppress(OSError, KeyError):
                os.write(saved[2], kept.read())
            raise
        finally:
            for number, descriptor in saved.items():
                os.dup2(descriptor, number)
                os.close(descriptor)


def _copies_of_streams() -> dict[int, int]:
    """Return copies of the descriptors of standard output and error, of those that are open."""
    copies = {}
    for number in (1, 2):
        with suppress(OSError):
            copies[number] = os.dup(number)
    return copies
