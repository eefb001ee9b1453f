"""Ownership: a worker owns one contiguous range of users and one of items."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class Ownership:
    """Which worker owns which of the rows ``0 .. total - 1``.

    Attributes:
        bounds: worker r owns the rows from ``bounds[r]`` up to ``bounds[r + 1]``; (W + 1,), ascending.
        rank: the worker whose view this is.
    """

    bounds: tuple[int, ...]
    rank: int = 0

    @classmethod
    def even(cls, total: int, *, rank: int = 0, size: int = 1) -> "Ownership":
        """Return nearly equal ranges."""
        return cls((0, *(even_range(total, rank=worker, size=size).stop for worker in range(size))), rank)

    @classmethod
    def of_parts(cls, part_bounds: tuple[int, ...], *, rank: int, size: int) -> "Ownership":
        """Return ranges of whole parts, nearly equally many; even ranges where workers outnumber the parts.

        Args:
            part_bounds: where each part of a partitioned dataset starts, and the end of the last.
            rank: this worker.
            size: number of workers.
        """
        num_parts = len(part_bounds) - 1
        if size > num_parts:
            return cls.even(part_bounds[-1], rank=rank, size=size)
        return cls(tuple(part_bounds[num_parts * worker // size] for worker in range(size + 1)), rank)

    @property
    def own(self) -> Range:
        """This worker's rows."""
        return Range(self.bounds[self.rank], self.bounds[self.rank + 1])

    @property
    def total(self) -> int:
        """Rows of all workers."""
        return self.bounds[-1]

    @property
    def sizes(self) -> list[int]:
        """Rows of each worker."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    def owner_of(self, rows: Tensor) -> Tensor:
        """Return the worker that owns each row, int64 of the same shape."""
        return torch.searchsorted(torch.tensor(self.bounds[1:], device=rows.device), rows, right=True)
