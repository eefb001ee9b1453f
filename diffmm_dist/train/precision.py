"""How exactly matrix products of float32 tensors are computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]

_TORCH_NAMES: dict[Precision, str] = {"float32": "highest", "tf32": "high", "bfloat16": "medium"}


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Compute products in the block with operands rounded to a precision; sums and everything else stay float32.

    Processors without such products compute in float32.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_TORCH_NAMES[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
