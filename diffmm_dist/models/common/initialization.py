"""Initial values keyed by (seed, name, row), the same on any number of workers."""

import math

import torch
from torch import Tensor, nn

from diffmm_dist.parallel.random import RandomStream


@torch.no_grad()
def fill_uniform(tensor: Tensor, bound: float, stream: RandomStream) -> None:
    """Fill a tensor from the uniform distribution on [-bound, bound], row by row."""
    rows = tensor.view(tensor.shape[0], -1)
    ids = torch.arange(rows.shape[0], device=tensor.device)
    rows.copy_(stream.symmetric_uniform_rows(ids, rows.shape[1]) * bound)


def xavier_table(num_rows: int, width: int, stream: RandomStream) -> nn.Parameter:
    """Return a Xavier-uniform parameter: bound sqrt(6 / (rows + width))."""
    table = nn.Parameter(torch.empty(num_rows, width))
    fill_uniform(table, math.sqrt(6 / (num_rows + width)), stream)
    return table
