"""Regularisation of embedding tables."""

import torch
from torch import Tensor


def squared_norm(*tables: Tensor) -> Tensor:
    """Return the sum of the squared Frobenius norms of whole tables (rows, d)."""
    total = tables[0].new_zeros(())
    for table in tables:
        flat = table.reshape(-1)
        total = total + torch.dot(flat, flat)
    return total
