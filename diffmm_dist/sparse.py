"""The pattern of a 0/1 matrix in compressed sparse rows: interactions, masks, truths and edges.

Shapes: R rows, C columns, E stored entries.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 20  # of the rows that are gathered for entries and held at a time: 4 MiB


@dataclass(frozen=True, eq=False)
class CSR:
    """Row pointers and sorted column indices of a 0/1 matrix; values are not stored.

    Attributes:
        indptr: int64 (R + 1,), where each row starts.
        indices: int64 (E,), columns, ascending and without repeats inside a row unless built by ``select``.
        num_columns: C.
    """

    indptr: Tensor
    indices: Tensor
    num_columns: int

    @classmethod
    def from_pairs(cls, rows: Tensor, columns: Tensor, *, num_rows: int, num_columns: int) -> "CSR":
        """Build from int64 pairs (E,) in any order; repeated pairs count once."""
        keys = torch.unique(rows * num_columns + columns)
        rows, columns = keys.div(max(num_columns, 1), rounding_mode="floor"), keys % max(num_columns, 1)
        return cls(_row_pointers(rows, num_rows), columns, num_columns)

    @property
    def num_rows(self) -> int:
        """R."""
        return self.indptr.numel() - 1

    @property
    def num_entries(self) -> int:
        """E."""
        return self.indices.numel()

    @cached_property
    def row_counts(self) -> Tensor:
        """Entries of each row, int64 (R,)."""
        return self.indptr.diff()

    @cached_property
    def column_counts(self) -> Tensor:
        """Entries of each column, int64 (C,)."""
        return torch.bincount(self.indices, minlength=self.num_columns)

    @cached_property
    def row_ids(self) -> Tensor:
        """Row of each entry, int64 (E,)."""
        return torch.repeat_interleave(self.row_counts, output_size=self.num_entries)

    @cached_property
    def keys(self) -> Tensor:
        """``row * C + column`` of each entry, ascending, int64 (E,)."""
        return self.row_ids * self.num_columns + self.indices

    def contains(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return whether each pair is stored, bool of the pairs' shape."""
        if self.num_entries == 0:
            return torch.zeros_like(rows, dtype=torch.bool)
        wanted = rows * self.num_columns + columns
        places = torch.searchsorted(self.keys, wanted).clamp_(max=self.num_entries - 1)
        return self.keys[places] == wanted

    def select(self, rows: Tensor, *, num_entries: int | None = None) -> "CSR":
        """Return the given rows, in their order and with repeats, as a matrix of their own.

        Args:
            rows: int64.
            num_entries: how many entries they have, if known: on a GPU, counting them makes the host wait.
        """
        return self.select_entries(rows, num_entries=num_entries)[0]

    def select_entries(self, rows: Tensor, *, num_entries: int | None = None) -> tuple["CSR", Tensor]:
        """Return ``select`` of rows, and where its entries are among those of this matrix, int64."""
        counts = self.row_counts[rows]
        indptr = torch.zeros(rows.numel() + 1, dtype=torch.int64, device=rows.device)
        torch.cumsum(counts, 0, out=indptr[1:])
        shift = torch.repeat_interleave(self.indptr[rows] - indptr[:-1], counts, output_size=num_entries)
        places = shift + torch.arange(shift.numel(), device=rows.device)
        return CSR(indptr, self.indices[places], self.num_columns), places

    def first(self, count: int) -> "CSR":
        """Return the first rows, as views."""
        stop = int(self.indptr[count])
        return CSR(self.indptr[: count + 1], self.indices[:stop], self.num_columns)

    def filter(self, kept: Tensor) -> "CSR":
        """Return the matrix with only the entries where ``kept``, bool (E,), is true."""
        return CSR(_row_pointers(self.row_ids[kept], self.num_rows), self.indices[kept], self.num_columns)

    def restrict(self, columns: Tensor) -> "CSR":
        """Return these columns alone, int64 (C',) ascending, renumbered from 0."""
        places = torch.full((self.num_columns,), -1, device=columns.device)
        places[columns] = torch.arange(columns.numel(), device=columns.device)
        wanted = places[self.indices]
        kept = wanted >= 0
        return CSR(_row_pointers(self.row_ids[kept], self.num_rows), wanted[kept], columns.numel())

    def matmul(self, table: Tensor) -> Tensor:
        """Return this 0/1 matrix times a table (C, d), for each row the sum of its columns' rows: (R, d).

        ``embedding_bag`` is a gather-sum, faster than torch's CSR product and DGL's sums wherever it was measured
        (docs/benchmarks/propagate.md).
        """
        return _gather_sum(self.indptr, self.indices, table)

    def weighted_matmul(self, weights: Tensor, table: Tensor) -> Tensor:
        """Return the matrix with these values (E,) instead of ones, times a table (C, d): (R, d).

        The table's gradient is the transposed product; the weights get none.
        """
        product: Tensor = _WeightedProduct.apply(table, weights, self)  # type: ignore[no-untyped-call, unused-ignore]
        return product

    def products_at(self, rows: Tensor, columns: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return the inner product of each entry's row and column, (E,), in ``out`` if given; no autograd.

        Args:
            rows: a vector for each row (R, d).
            columns: a vector for each column (C, d).
            out: where to write.
        """
        if out is None:
            out = rows.new_empty(self.num_entries)
        step = max(1, _BLOCK_ELEMENTS // max(rows.shape[1], 1))
        for start in range(0, self.num_entries, step):
            block = slice(start, start + step)
            torch.linalg.vecdot(rows[self.row_ids[block]], columns[self.indices[block]], out=out[block])
        return out

    def transpose(self) -> "CSR":
        """Return the C x R pattern, rows again ascending inside each of its rows."""
        return self.transpose_entries()[0]

    def transpose_entries(self) -> tuple["CSR", Tensor]:
        """Return ``transpose``, and where its entries are among those of this matrix, int64 (E,)."""
        order = torch.argsort(self.indices, stable=True)
        transposed = CSR(_row_pointers(self.indices[order], self.num_columns), self.row_ids[order], self.num_rows)
        return transposed, order

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the R x C matrix of zeros and ones; meant for a batch of rows."""
        out = torch.zeros(self.num_rows, self.num_columns, dtype=dtype, device=self.indices.device)
        out[self.row_ids, self.indices] = 1
        return out

    def to(self, device: torch.device) -> "CSR":
        """Return the same pattern on a device."""
        return CSR(self.indptr.to(device), self.indices.to(device), self.num_columns)


class _WeightedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor, matrix: CSR) -> Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(weights)
        return _gather_sum(matrix.indptr, matrix.indices, table, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        matrix: CSR = ctx.matrix
        order = torch.argsort(matrix.indices, stable=True)
        pointers = _row_pointers(matrix.indices[order], matrix.num_columns)
        weights = ctx.saved_tensors[0][order]
        return _gather_sum(pointers, matrix.row_ids[order], gradients[0], weights), None, None


def _gather_sum(pointers: Tensor, indices: Tensor, table: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the sum of each row's table rows, weighted or not."""
    if indices.numel() == 0:
        return table.new_zeros(pointers.numel() - 1, table.shape[1])
    if not torch.is_grad_enabled():
        table = table.detach()  # of a parameter, what only a backward pass would need is computed otherwise
    return torch.nn.functional.embedding_bag(
        indices, table, pointers, mode="sum", include_last_offset=True, per_sample_weights=weights
    )


def _row_pointers(sorted_rows: Tensor, num_rows: int) -> Tensor:
    return torch.searchsorted(sorted_rows, torch.arange(num_rows + 1, device=sorted_rows.device))
