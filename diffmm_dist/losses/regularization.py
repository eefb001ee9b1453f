"""Regularisation of embedding tables."""

import torch
from torch import Tensor


def squared_norm(*tables: Tensor) -> Tensor:
    """Return the sum of the squared Frobenius norms of whole tables (rows, d)."""
    return torch.stack([torch.linalg.vector_norm(table) for table in tables]).square().sum()
