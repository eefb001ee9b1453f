"""Ownership: a worker owns one contiguous range of users and one of items."""

from typing import NamedTuple


class Range(NamedTuple):
    """The rows ``start <= row < stop``."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of rows, possibly 0."""
        return self.stop - self.start


def even_range(total: int, *, rank: int, size: int) -> Range:
    """Return the rows of one worker when ``total`` rows are cut into ``size`` nearly equal pieces.

    Pieces are in the order of ranks, cover all rows, and differ by one row at most; with more workers than rows the
    last ones are empty.
    """
    return Range(total * rank // size, total * (rank + 1) // size)
