"""Initial values keyed by (seed, name, row), the same on any number of workers."""

import math

import torch
from torch import Tensor, nn

from diffmm_dist.parallel.random import RandomStream


@torch.no_grad()
def fill_uniform(tensor: Tensor, bound: float, stream: RandomStream, *, ids: Tensor | None = None) -> None:
    """Fill a tensor from the uniform distribution on [-bound, bound], each row by its id, int64 (rows,)."""
    rows = tensor.view(tensor.shape[0], math.prod(tensor.shape[1:]))
    if ids is None:
        ids = torch.arange(rows.shape[0], device=tensor.device)
    rows.copy_(stream.symmetric_uniform_rows(ids, rows.shape[1]) * bound)


def xavier_table(num_rows: int, width: int, stream: RandomStream, *, ids: Tensor | None = None) -> nn.Parameter:
    """Return a Xavier-uniform parameter: bound sqrt(6 / (num_rows + width)).

    Args:
        num_rows: rows of the whole table.
        width: its columns.
        stream: of the table.
        ids: the rows of it to return, int64; all by default.
    """
    table = nn.Parameter(torch.empty(num_rows if ids is None else ids.numel(), width))
    fill_uniform(table, math.sqrt(6 / (num_rows + width)), stream, ids=None if ids is None else ids.cpu())
    return table
