"""The denoiser: a small network from a noisy row and its timestep to the clean row.

Shape suffixes: B rows, I items, H hidden, E time embedding.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmm_dist.parallel.random import RandomStream

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
    is a slice of the last.

    Args:
        num_items: I.
        hidden_dims: width of each hidden layer.
        time_embedding_dim: E.
        normalize_input: L2-normalise x_t first.
    """

    def __init__(
        self, num_items: int, hidden_dims: Sequence[int], *, time_embedding_dim: int, normalize_input: bool = False
    ) -> None:
        super().__init__()
        first, last = hidden_dims[0], hidden_dims[-1]
        self.normalize_input = normalize_input
        self.time_embedding_dim = time_embedding_dim
        self.time_layer = nn.Linear(time_embedding_dim, time_embedding_dim)
        self.input_weight = nn.Parameter(torch.empty(num_items, first))
        self.input_time_weight = nn.Parameter(torch.empty(time_embedding_dim, first))
        self.input_bias = nn.Parameter(torch.empty(first))
        self.hidden_layers = nn.ModuleList(nn.Linear(*dims) for dims in pairwise(hidden_dims))
        self.output_weight = nn.Parameter(torch.empty(num_items, last))
        self.output_bias = nn.Parameter(torch.empty(num_items))

    @torch.no_grad()
    def initialize(self, stream: RandomStream) -> None:
        """Draw weights from N(0, 2 / (fan_in + fan_out)) and biases from N(0, 0.001^2), keyed by name and row."""
        num_items, first = self.input_weight.shape
        input_std = math.sqrt(2 / (num_items + self.time_embedding_dim + first))
        stds = {"input_weight": input_std, "input_time_weight": input_std}
        for name, parameter in self.named_parameters():
            std = _BIAS_STD
            if parameter.dim() == 2:
                std = stds.get(name, math.sqrt(2 / sum(parameter.shape)))
            rows = parameter.view(parameter.shape[0], -1)
            ids = torch.arange(rows.shape[0], device=rows.device)
            rows.copy_(stream.child(name).normal_rows(ids, rows.shape[1]) * std)

    def activate(self, projected_BH: Tensor, t_B: Tensor) -> Tensor:
        """Return the last hidden layer, from the row already multiplied by the input weights: (B, last H)."""
        time_emb_BE = self.time_layer(timestep_embedding(t_B, self.time_embedding_dim))
        hidden = torch.tanh(projected_BH + torch.addmm(self.input_bias, time_emb_BE, self.input_time_weight))
        for layer in self.hidden_layers:
            hidden = torch.tanh(layer(hidden))
        return hidden

    def forward(self, x_t_BI: Tensor, t_B: Tensor, *, dropout_mask_BI: Tensor | None = None) -> Tensor:
        """Return the prediction of the clean rows (B, I).

        Args:
            x_t_BI: noisy rows.
            t_B: int64 timesteps.
            dropout_mask_BI: factors on the input, 0 or 1 / keep probability; None while sampling.
        """
        if self.normalize_input:
            x_t_BI = F.normalize(x_t_BI, dim=1)
        if dropout_mask_BI is not None:
            x_t_BI = x_t_BI * dropout_mask_BI
        hidden = self.activate(x_t_BI @ self.input_weight, t_B)
        return torch.addmm(self.output_bias, hidden, self.output_weight.T)
