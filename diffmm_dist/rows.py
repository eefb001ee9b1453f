"""Operations on the rows of large tables whose gradients take fewer passes over memory than autograd's own.

Shape suffixes: N rows, D columns, K tables.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SMALLEST_NORM = 1e-12


def normalize_rows(rows_ND: Tensor) -> Tensor:
    """Return rows of Euclidean norm 1, (N, D); rows of zeros stay zeros."""
    normalized: Tensor = _Normalize.apply(rows_ND)  # type: ignore[no-untyped-call]
    return normalized


class _Normalize(torch.autograd.Function):
    """With y = x / |x|, the gradient of x is (g - y (g . y)) / |x|."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor) -> Tensor:
        norm_N1 = torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True).clamp_(min=_SMALLEST_NORM)
        normalized_ND: Tensor = rows_ND / norm_N1
        ctx.save_for_backward(normalized_ND, norm_N1)
        return normalized_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        normalized_ND, norm_N1 = ctx.saved_tensors
        along_N1 = (gradients[0] * normalized_ND).sum(dim=1, keepdim=True)
        across_ND = torch.addcmul(gradients[0], normalized_ND, along_N1, value=-1)
        return across_ND.div_(norm_N1)


def weighted_sum(weights_K: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Return sum_k w_k X_k, (N, D), of K tables X_k (N, D)."""
    total: Tensor = _WeightedSum.apply(weights_K, *tables)  # type: ignore[no-untyped-call]
    return total


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_K: Tensor, *tables: Tensor) -> Tensor:
        ctx.save_for_backward(weights_K, *tables)
        total = tables[0] * weights_K[0]
        for weight, table in zip(weights_K[1:], tables[1:], strict=True):
            total.addcmul_(table, weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights_K, *tables = ctx.saved_tensors
        flat = gradients[0].reshape(-1)
        weight_grads = torch.stack([torch.dot(flat, table.reshape(-1)) for table in tables])
        wanted = zip(weights_K, ctx.needs_input_grad[1:], strict=True)
        return weight_grads, *(gradients[0] * weight if needed else None for weight, needed in wanted)
