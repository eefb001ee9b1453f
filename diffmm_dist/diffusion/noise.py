"""Noisy rows, and their product with the denoiser's input weights.

Shape suffixes: B rows, C own items, c items of a block, N stored entries, H hidden.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.diffusion.denoiser import TRAFFIC, Denoiser, row_norm
from diffmm_dist.diffusion.schedule import DiffusionSchedule, at
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.sums import summed
from diffmm_dist.sparse import CSR

BLOCK_ELEMENTS = 1 << 24  # noisy values held at a time: 64 MiB
_JITTER = 1e-7  # on the diagonal of the Gram matrix, relative to its mean, so that rounding cannot make it indefinite


@dataclass(frozen=True, eq=False)
class NoisyRows:
    """x_t = sqrt(alphabar_t) x_start + sqrt(1 - alphabar_t) noise of a batch, times dropout factors.

    Nothing is held but the stored entries of the clean rows: every value is drawn when its block of items is asked for,
    and is the same whenever that is.

    Attributes:
        schedule: the noise schedule.
        rows: x_start at own items (B x C).
        t: timestep of each row, int64 (B,).
        users: what keys each row's noise and dropout, int64 (B,).
        columns: the own items.
        noise: stream of the noise.
        dropout: stream of the dropout, or None without.
        keep_prob: probability with which dropout keeps a value; kept ones are divided by it.
        normalized: divide each row by its norm before dropout.
    """

    schedule: DiffusionSchedule
    rows: CSR
    t: Tensor
    users: Tensor
    columns: Columns
    noise: RandomStream
    dropout: RandomStream | None = None
    keep_prob: float = 1.0
    normalized: bool = False

    def blocks(self) -> Iterator[slice]:
        """Yield the slices of own items in which the rows are drawn; there is one even where it is empty."""
        step = max(1, BLOCK_ELEMENTS // max(self.rows.num_rows, 1))
        for start in range(0, max(self.columns.size, 1), step):
            yield slice(start, min(start + step, self.columns.size))

    def block(self, items: slice) -> Tensor:
        """Return the values of a block of own items (B, c)."""
        x_t = self._before_dropout(items)
        if self.normalized:
            x_t /= self._norm_B1
        if self.dropout is not None:
            x_t *= self.dropout.dropout_rows(self.users, self.columns.ids[items], keep_prob=self.keep_prob)
        return x_t

    def _before_dropout(self, items: slice) -> Tensor:
        x_t = self.noise.normal_rows(self.users, self.columns.ids[items], std=self.noise_scale_B)
        row_ids, indices = self.rows.row_ids, self.rows.indices
        if items.stop - items.start < self.columns.size:
            inside = (indices >= items.start) & (indices < items.stop)
            row_ids, indices = row_ids[inside], indices[inside] - items.start
        return x_t.index_put_((row_ids, indices), self._signal_scale_B[row_ids], accumulate=True)

    @cached_property
    def noise_scale_B(self) -> Tensor:
        """sqrt(1 - alphabar_t)."""
        return at(self.schedule.sqrt_one_minus_alphas_cumprod, self.t)

    @cached_property
    def _signal_scale_B(self) -> Tensor:
        return at(self.schedule.sqrt_alphas_cumprod, self.t)

    @cached_property
    def _norm_B1(self) -> Tensor:
        squares = torch.zeros_like(self.noise_scale_B)
        for items in self.blocks():
            squares += self._before_dropout(items).square().sum(dim=1)
        return row_norm(all_reduce_sum(squares, self.columns.world, purpose=TRAFFIC))[:, None]

    @cached_property
    def signal_N(self) -> Tensor:
        """sqrt(alphabar_t) times the dropout factor, at each stored entry of the clean rows."""
        rows = self.rows
        signal = self._signal_scale_B[rows.row_ids]
        if self.dropout is None:
            return signal
        users, items = self.users[rows.row_ids], self.columns.ids[rows.indices]
        return signal * self.dropout.dropout_pairs(users, items, keep_prob=self.keep_prob)


def project(noisy: NoisyRows, weight_CH: Tensor) -> Tensor:
    """Return own items' share of the noisy rows times the input weights (B, H).

    At most one block of noisy values exists at a time; where there are several, the backward pass draws them again.
    """
    projected: Tensor = _Project.apply(weight_CH, noisy)  # type: ignore[no-untyped-call]
    return projected


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_CH: Tensor, noisy: NoisyRows) -> Tensor:
        projected = weight_CH.new_zeros(noisy.rows.num_rows, weight_CH.shape[1])
        blocks = list(noisy.blocks())
        for items in blocks:
            x_t = noisy.block(items)
            projected.addmm_(x_t, weight_CH[items])
        ctx.noisy, ctx.shape = noisy, weight_CH.shape
        if len(blocks) == 1:
            ctx.save_for_backward(x_t)
        return projected

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        noisy: NoisyRows = ctx.noisy
        weight_grad_CH = gradients[0].new_empty(ctx.shape)
        for items in noisy.blocks():
            x_t = ctx.saved_tensors[0] if ctx.saved_tensors else noisy.block(items)
            torch.mm(x_t.T, gradients[0], out=weight_grad_CH[items])
        return weight_grad_CH, None


def hidden_from_hidden_noise(denoiser: Denoiser, noisy: NoisyRows) -> Tensor:
    """Return the last hidden layer with the noise drawn behind the input weights instead of before them: (B, H).

    The input layer sees noise only through noise W, which is normal with covariance W^T W in every row, and so is
    xi L^T with xi normal of width H and L L^T = W^T W. That costs H values per row and O(I H^2) per batch instead of I
    values per row and O(B I H). Without dropout the losses and, as L is differentiated, the expected gradients have
    exactly the distribution of noise on the items. Dropout factors m make noise m W a sum of I independent terms with
    covariance W^T W / keep_prob, which is taken for normal; observed items keep their own factors.
    """
    world, weight = denoiser.columns.world, denoiser.input_weight
    signal_BH = summed(noisy.rows.weighted_matmul(noisy.signal_N, weight), world, purpose=TRAFFIC)
    gram_HH = summed(weight.T @ weight, world, purpose=TRAFFIC)
    jitter_H = (_JITTER * gram_HH.detach().diagonal().mean()).expand(gram_HH.shape[0])
    factor_HH = torch.linalg.cholesky(gram_HH + torch.diag(jitter_H))
    xi_BH = noisy.noise.normal_rows(noisy.users, weight.shape[1])
    scale_B = noisy.noise_scale_B / math.sqrt(noisy.keep_prob)
    return denoiser.hidden_of_row(signal_BH + scale_B[:, None] * (xi_BH @ factor_HH.T), noisy.t)
