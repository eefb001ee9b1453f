"""The denoiser: a small network from a noisy row and its timestep to the clean row.

Shape suffixes: B rows, C own items (all of them in a world of one), H hidden, E time embedding.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.sums import split, summed

TRAFFIC = "denoiser"
_BIAS_STD = 0.001


def timestep_embedding(t_B: Tensor, width: int) -> Tensor:
    """Return [cos(t w_j), sin(t w_j)] with w_j = 10000^(-j / (width // 2)), float32 (B, width); odd widths end in 0."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t_B.device, dtype=torch.float32))
    angles = t_B[:, None].to(torch.float32) * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class Denoiser(nn.Module):
    """f(x_t, t): affine, tanh for each hidden layer, then affine to all items (models/diffmm/README.md, "denoise").

    The input layer sees [x_t, time embedding], and its weights for the two are kept apart. The weights of both outer
    layers are tables with one row per item, so that a sparse row is a gather-sum of the first and a block of items
    is a slice of the last. Of both a worker may hold a range of items only: what goes through the hidden layer is then
    a sum over the workers that hold the others, and is the same on all of them.

    Args:
        columns: the own items.
        hidden_dims: width of each hidden layer.
        time_embedding_dim: E.
        normalize_input: L2-normalise x_t first.
    """

    def __init__(
        self, columns: Columns, hidden_dims: Sequence[int], *, time_embedding_dim: int, normalize_input: bool = False
    ) -> None:
        super().__init__()
        first, last = hidden_dims[0], hidden_dims[-1]
        self.columns = columns
        self.normalize_input = normalize_input
        self.time_embedding_dim = time_embedding_dim
        self.time_layer = nn.Linear(time_embedding_dim, time_embedding_dim)
        self.input_weight = nn.Parameter(torch.empty(columns.size, first))
        self.input_time_weight = nn.Parameter(torch.empty(time_embedding_dim, first))
        self.input_bias = nn.Parameter(torch.empty(first))
        self.hidden_layers = nn.ModuleList(nn.Linear(*dims) for dims in pairwise(hidden_dims))
        self.output_weight = nn.Parameter(torch.empty(columns.size, last))
        self.output_bias = nn.Parameter(torch.empty(columns.size))

    PER_ITEM = ("input_weight", "output_weight", "output_bias")
    """Parameters with a row per own item."""

    @torch.no_grad()
    def initialize(self, stream: RandomStream) -> None:
        """Draw weights from N(0, 2 / (fan_in + fan_out)) and biases from N(0, 0.001^2), keyed by name and row."""
        num_items, (first, last) = self.columns.total, (self.input_weight.shape[1], self.output_weight.shape[1])
        input_std = math.sqrt(2 / (num_items + self.time_embedding_dim + first))
        stds = {
            "input_weight": input_std,
            "input_time_weight": input_std,
            "output_weight": math.sqrt(2 / (num_items + last)),
        }
        for name, parameter in self.named_parameters():
            std = _BIAS_STD
            if parameter.dim() == 2:
                std = stds.get(name, math.sqrt(2 / sum(parameter.shape)))
            rows = parameter if parameter.dim() == 2 else parameter[:, None]
            ids = self.columns.ids if name in self.PER_ITEM else torch.arange(rows.shape[0])
            rows.copy_(stream.child(name).normal_rows(ids.to(rows.device), rows.shape[1]) * std)

    def hidden(self, projected_BH: Tensor, t_B: Tensor) -> Tensor:
        """Return the last hidden layer from own items' share of x_t times the input weights: (B, last H)."""
        return self.hidden_of_row(summed(projected_BH, self.columns.world, purpose=TRAFFIC), t_B)

    def hidden_of_row(self, projected_BH: Tensor, t_B: Tensor, constant_H: Tensor | None = None) -> Tensor:
        """Return the last hidden layer from the whole x_t times the input weights: (B, last H).

        It is the same on every worker of a row; its gradient is summed over them.

        Args:
            projected_BH: the product.
            t_B: timestep of each row, or (1,), of all.
            constant_H: to be added to each row of the product.
        """
        bias_H = self.input_bias if constant_H is None else self.input_bias + constant_H
        time_emb_BE = self.time_layer(timestep_embedding(t_B, self.time_embedding_dim))
        hidden = (projected_BH + torch.addmm(bias_H, time_emb_BE, self.input_time_weight)).tanh_()
        for layer in self.hidden_layers:
            hidden = layer(hidden).tanh_()
        return split(hidden, self.columns.world, purpose=TRAFFIC)

    def forward(self, x_t_BC: Tensor, t_B: Tensor) -> Tensor:
        """Return the prediction of the clean rows at own items (B, C) from noisy ones, without dropout."""
        if self.normalize_input:
            square_B = summed(x_t_BC.square().sum(dim=1), self.columns.world, purpose=TRAFFIC)
            x_t_BC = x_t_BC / row_norm(square_B)[:, None]
        hidden = self.hidden(x_t_BC @ self.input_weight, t_B)
        return torch.addmm(self.output_bias, hidden, self.output_weight.T)


def row_norm(square_B: Tensor) -> Tensor:
    """Return the norm to divide rows by, from its square; rows of zeros stay zeros."""
    return square_B.sqrt().clamp(min=1e-12)
