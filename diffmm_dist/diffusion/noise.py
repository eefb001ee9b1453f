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
from diffmm_dist.precision import add_product_, operand, operand_dtype, product
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
        noise: stream of the noise and of the dropout.
        keep_prob: probability with which dropout keeps a value; kept ones are divided by it.
        normalized: divide each row by its norm before dropout.
    """

    schedule: DiffusionSchedule
    rows: CSR
    t: Tensor
    users: Tensor
    columns: Columns
    noise: RandomStream
    keep_prob: float = 1.0
    normalized: bool = False

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (own items, their values (B, c) in the type of operands); there is a block even where it is empty.

        Where there is one only, it is drawn once.
        """
        slices = self._slices()
        for items in slices:
            yield items, self.whole if len(slices) == 1 else self._drawn(items)

    def _slices(self) -> list[slice]:
        step = max(1, BLOCK_ELEMENTS // max(self.rows.num_rows, 1))
        starts = range(0, max(self.columns.size, 1), step)
        return [slice(start, min(start + step, self.columns.size)) for start in starts]

    @cached_property
    def whole(self) -> Tensor:
        """All values (B, C), in the type of operands."""
        return self._drawn(slice(0, self.columns.size))

    def _drawn(self, items: slice) -> Tensor:
        if self.normalized:
            x_t = self._normalized(items)
            if self.keep_prob < 1:
                x_t *= self._dropout.dropout_rows(self.users, self.columns.ids[items], keep_prob=self.keep_prob)
            return operand(x_t)
        x_t = self._noise(items, keep_prob=self.keep_prob, dtype=operand_dtype())
        return self._add_at_entries(x_t, items, self.signal_N)

    def _normalized(self, items: slice) -> Tensor:
        x_t = self._before_dropout(items)
        if items.stop - items.start == self.columns.size:  # drawn once, where the norm is of what there is already
            return x_t.div_(self._norm(torch.linalg.vector_norm(x_t, dim=1).square()))
        return x_t.div_(self._norm_B1)

    def _before_dropout(self, items: slice) -> Tensor:
        return self._add_at_entries(self._noise(items), items, self._signal_scale_B[self.rows.row_ids])

    def _noise(self, items: slice, *, keep_prob: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        ids = self.columns.ids[items]
        return self.noise.normal_rows(self.users, ids, std=self.noise_scale_B, keep_prob=keep_prob, dtype=dtype)

    def _add_at_entries(self, x_t: Tensor, items: slice, values_N: Tensor) -> Tensor:
        row_ids, indices = self.rows.row_ids, self.rows.indices
        width = items.stop - items.start
        if width < self.columns.size:  # of the other blocks' entries zeros: selecting would make a GPU's host wait
            indices = indices - items.start
            values_N = values_N * ((indices >= 0) & (indices < width))
            indices = indices.clamp_(0, width - 1)
        return x_t.index_put_((row_ids, indices), values_N.to(x_t.dtype), accumulate=True)

    @property
    def _dropout(self) -> RandomStream:
        """What the dropout factors come from: what the noise comes from, unless all noise is needed for the norm."""
        return self.noise.child("dropout") if self.normalized else self.noise

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
        for items in self._slices():
            squares += torch.linalg.vector_norm(self._before_dropout(items), dim=1).square()
        return self._norm(squares)

    def _norm(self, squares_B: Tensor) -> Tensor:
        """Return what to divide rows by from own items' share of their squares, (B, 1)."""
        return row_norm(all_reduce_sum(squares_B, self.columns.world, purpose=TRAFFIC))[:, None]

    @cached_property
    def signal_N(self) -> Tensor:
        """sqrt(alphabar_t) times the dropout factor, at each stored entry of the clean rows."""
        rows = self.rows
        signal = self._signal_scale_B[rows.row_ids]
        if self.keep_prob == 1:
            return signal
        users, items = self.users[rows.row_ids], self.columns.ids[rows.indices]
        return signal * self._dropout.dropout_pairs(users, items, keep_prob=self.keep_prob)


def project(noisy: NoisyRows, weight_CH: Tensor) -> Tensor:
    """Return own items' share of the noisy rows times the input weights (B, H).

    At most one block of noisy values exists at a time; where there are several, the backward pass draws them again.
    """
    projected: Tensor = _Project.apply(weight_CH, noisy)  # type: ignore[no-untyped-call, unused-ignore]
    return projected


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_CH: Tensor, noisy: NoisyRows) -> Tensor:
        projected = weight_CH.new_zeros(noisy.rows.num_rows, weight_CH.shape[1])
        rounded_CH = operand(weight_CH)
        for items, x_t in noisy.blocks():
            add_product_(projected, x_t, rounded_CH[items])
        ctx.noisy, ctx.shape = noisy, weight_CH.shape
        return projected

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        noisy: NoisyRows = ctx.noisy
        weight_grad_CH = gradients[0].new_empty(ctx.shape)
        gradient_BH = gradients[0]
        for items, x_t in noisy.blocks():
            gradient_BH = operand(gradient_BH, like=x_t)
            product(x_t.T, gradient_BH, out=weight_grad_CH[items])
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
    # Where there is none it is NaN, and so is the loss: an error would have to be waited for.
    factor_HH, failed = torch.linalg.cholesky_ex(gram_HH + torch.diag(jitter_H))
    factor_HH = torch.where(failed == 0, factor_HH, torch.nan)
    # Of a stream of its own: the noise's also draws the dropout of the observed items.
    xi_BH = noisy.noise.child("hidden").normal_rows(noisy.users, weight.shape[1])
    scale_B = noisy.noise_scale_B / math.sqrt(noisy.keep_prob)
    return denoiser.hidden_of_row(signal_BH + scale_B[:, None] * (xi_BH @ factor_HH.T), noisy.t)
