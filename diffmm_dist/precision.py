"""How exactly matrix products of float32 tensors are computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "tf32", "bfloat16"]

_TORCH_NAMES: dict[Precision, str] = {"float32": "highest", "tf32": "high", "bfloat16": "medium"}


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Compute products in the block with operands rounded to a precision; sums of many terms stay float32.

    With ``bfloat16`` the products that take most time round their operands once for all their uses (``operand``), and
    their results too; torch rounds those of the others where the processor is faster at that.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_TORCH_NAMES[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def operand_dtype() -> torch.dtype:
    """Return the type that operands of large products are to have here."""
    return torch.bfloat16 if torch.get_float32_matmul_precision() == _TORCH_NAMES["bfloat16"] else torch.float32


def operand(values: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Return float32 values in the type of operands here, or of another one; the same tensor where that is float32.

    Values of float64, with which the arithmetic is checked, stay as they are.
    """
    if values.dtype == torch.float64:
        return values
    return values.to(operand_dtype() if like is None else like.dtype)


def product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the product of two operands in float32, in ``out`` if given."""
    if left.dtype != torch.bfloat16:
        return torch.mm(left, right, out=out)
    rounded = left @ right
    return rounded.float() if out is None else out.copy_(rounded)


def add_product_(total: Tensor, left: Tensor, right: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """Replace a float32 tensor by beta times itself plus alpha times the product of two operands."""
    if left.dtype != torch.bfloat16:
        return total.addmm_(left, right, beta=beta, alpha=alpha)
    return (total if beta == 1 else total.mul_(beta)).add_(left @ right, alpha=alpha)


def biased_product(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two operands plus a float32 bias of each column, in float32."""
    return torch.addmm(bias, left, right) if left.dtype != torch.bfloat16 else product(left, right).add_(bias)
