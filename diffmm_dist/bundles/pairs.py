"""Which items belong to which row: what users know already, or the histories that somebody asks about."""

from dataclasses import dataclass

import numpy as np

from diffmm_dist.bundles.files import Ints


@dataclass(frozen=True, eq=False)
class Pairs:
    """Row pointers and items of a 0/1 matrix.

    Attributes:
        indptr: int64 (rows + 1,), where each row starts.
        items: int64, rows of items, ascending and without repeats inside a row.
    """

    indptr: Ints
    items: Ints

    @classmethod
    def of(cls, rows: Ints, items: Ints, *, num_rows: int, num_items: int) -> "Pairs":
        """Build from pairs in any order; repeated ones count once."""
        keys = rows * num_items + items
        if len(keys) and not (keys[1:] > keys[:-1]).all():
            keys = np.unique(keys)
        found, items = np.divmod(keys, max(num_items, 1))
        indptr = np.zeros(num_rows + 1, np.int64)
        np.cumsum(np.bincount(found, minlength=num_rows), out=indptr[1:])
        return cls(indptr, items)

    @property
    def counts(self) -> Ints:
        """Items of each row, int64 (rows,)."""
        return np.diff(self.indptr)

    def of_row(self, row: int) -> Ints:
        """Return the items of a row."""
        return self.items[self.indptr[row] : self.indptr[row + 1]]

    def take(self, rows: Ints) -> "Pairs":
        """Return some rows, in the order asked for."""
        counts = self.counts[rows]
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        places = np.repeat(self.indptr[rows] - indptr[:-1], counts) + np.arange(indptr[-1])
        return Pairs(indptr, self.items[places])

    def rows(self) -> Ints:
        """Return the row of each entry, int64."""
        return np.repeat(np.arange(len(self.indptr) - 1), self.counts)
