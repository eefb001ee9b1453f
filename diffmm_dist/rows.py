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
    normalized: Tensor = _Normalize.apply(rows_ND)  # type: ignore[no-untyped-call, unused-ignore]
    return normalized


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor) -> Tensor:
        normalized_ND, norm_N1 = direction_and_norm(rows_ND)
        ctx.save_for_backward(normalized_ND, norm_N1)
        return normalized_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradient_of_rows(gradients[0], *ctx.saved_tensors)


def direction_and_norm(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows divided by their norms, and the norms (N, 1), of rows of zeros a tiny number."""
    norm_N1 = torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True).clamp_(min=_SMALLEST_NORM)
    return rows_ND / norm_N1, norm_N1


def gradient_of_rows(
    gradient_ND: Tensor, normalized_ND: Tensor, norm_N1: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Return the gradient of rows x from that of y = x / |x|: (g - y (g . y)) / |x|, in ``out`` if given."""
    along_N1 = (gradient_ND * normalized_ND).sum(dim=1, keepdim=True)
    return torch.addcmul(gradient_ND, normalized_ND, along_N1, value=-1, out=out).div_(norm_N1)


def weighted_sum(weights_K: Tensor, tables: Sequence[Tensor], *, base: Tensor | None = None) -> Tensor:
    """Return sum_k w_k X_k, (N, D), of K tables X_k (N, D), plus a base (N, D) if given."""
    total: Tensor = _WeightedSum.apply(base, weights_K, *tables)  # type: ignore[no-untyped-call, unused-ignore]
    return total


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor | None, weights_K: Tensor, *tables: Tensor) -> Tensor:
        ctx.save_for_backward(weights_K, *tables)
        total = tables[0] * weights_K[0] if base is None else torch.addcmul(base, tables[0], weights_K[0])
        for weight, table in zip(weights_K[1:], tables[1:], strict=True):
            total.addcmul_(table, weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights_K, *tables = ctx.saved_tensors
        # Not torch.dot, which uses one thread.
        weight_grads = torch.stack([(gradients[0] * table).sum() for table in tables])
        wanted = zip(weights_K, ctx.needs_input_grad[2:], strict=True)
        return (
            gradients[0] if ctx.needs_input_grad[0] else None,
            weight_grads,
            *(gradients[0] * weight if needed else None for weight, needed in wanted),
        )
