"""Gaussian diffusion of interaction rows: training losses and the reverse chain.

Shape suffixes: B rows, C own items (all of them in a world of one), D embedding, H hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffmm_dist.diffusion.denoiser import TRAFFIC, Denoiser, row_norm
from diffmm_dist.diffusion.noise import NoisyRows, hidden_from_hidden_noise, project
from diffmm_dist.diffusion.output import Products, error_and_signal, gram
from diffmm_dist.diffusion.schedule import DiffusionSchedule, at
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.sums import summed
from diffmm_dist.precision import add_product_, biased_product, operand, product
from diffmm_dist.sparse import CSR

_NORM_BLOCK = 256  # columns of the symmetric product computed at a time
BLOCK_ELEMENTS = 1 << 20  # denoised values held at a time: 4 MiB, which the next pass finds in the cache


@dataclass(frozen=True)
class DenoisingLosses:
    """Losses of each row, (B,).

    Attributes:
        elbo: own items' share of the weighted squared error.
        signal: the squared error of what the prediction makes of a table, the same on all workers of a row.
    """

    elbo: Tensor
    signal: Tensor


def training_losses(
    denoiser: Denoiser,
    noisy: NoisyRows,
    *,
    table_CD: Tensor,
    target_BD: Tensor,
    products: Products = "auto",
    noise: Literal["exact", "hidden"] = "exact",
) -> DenoisingLosses:
    """Return the denoising losses of a batch of rows (models/diffmm/README.md, "denoise").

    elbo = w_t mean_I (f - x_start)^2 with w_t = SNR(t - 1) - SNR(t);
    signal = mean_D (f G - Y)^2, the sums over items not divided by the degree.

    Args:
        denoiser: f.
        noisy: the batch, x_t and with it x_start and t.
        table_CD: G at own items, without gradient.
        target_BD: this worker's share of Y, without gradient; shares of the workers of a row add up to it.
        products: how the output layer is computed (output.py).
        noise: ``hidden`` draws it behind the input layer (noise.py).
    """
    if noise == "hidden":
        hidden_BH = hidden_from_hidden_noise(denoiser, noisy)
    else:
        hidden_BH = denoiser.hidden(project(noisy, denoiser.input_weight), noisy.t)
    error_B, signal_BD = error_and_signal(denoiser, hidden_BH, noisy.rows, table_CD, products=products)
    difference_BD = summed(signal_BD - target_BD, noisy.columns.world, purpose=TRAFFIC)
    weight_B = at(noisy.schedule.loss_weights, noisy.t) / noisy.columns.total
    return DenoisingLosses(weight_B * error_B, difference_BD.square().mean(dim=1))


class ReverseChain:
    """Denoises clean rows: x_T = x_start (or corrupted), then x_{t-1} = coef1_t f(x_t, t) + coef2_t x_t down to t = 0.

    The input layer is linear in x_t and so is x_{t-1} in f's last hidden layer a_t. So the chain runs on
    p_t = x_t W_in (B x H) instead of x_t: p_{t-1} = coef1_t (a_t (W_out^T W_in) + b_out W_in) + coef2_t p_t, with
    W_out^T W_in (H x H) computed once. Since coef1_0 = 1 and coef2_0 = 0 for every schedule, the result is
    f(x_1, 0) = a_0 W_out^T + b_out: one product over the items instead of 2 T, taken block by block of items.
    Where rows are normalised, the hidden layer gets p_t / |x_t|, and |x_t| follows from the same sums (``_Norms``).
    Posterior noise acts on x_t itself; with it the chain goes step by step.

    Args:
        schedule: the noise schedule.
        denoiser: f; its weights must not change while the chain is in use.
        sampling_steps: corrupt the rows to this many steps first; 0 starts from the clean rows.
        sampling_noise: add posterior noise at every step but the last.
    """

    @torch.no_grad()
    def __init__(
        self, schedule: DiffusionSchedule, denoiser: Denoiser, *, sampling_steps: int = 0, sampling_noise: bool = False
    ) -> None:
        self._schedule = schedule
        self._denoiser = denoiser
        self._columns = denoiser.columns
        self._sampling_steps = sampling_steps
        self._sampling_noise = sampling_noise
        if not sampling_noise:
            self._output_weight = operand(denoiser.output_weight)
            self._transition_HH = operand(self._sum(product(self._output_weight.T, operand(denoiser.input_weight))))
            self._offset_H = self._sum(denoiser.output_bias @ denoiser.input_weight)
            self._quadratic = None
            if denoiser.normalize_input:
                weight, bias = denoiser.output_weight, denoiser.output_bias
                self._quadratic = Quadratic(
                    *(self._sum(part) for part in (gram(weight), bias @ weight, bias.dot(bias)[None]))
                )

    def _sum(self, partial: Tensor) -> Tensor:
        return all_reduce_sum(partial, self._columns.world, purpose=TRAFFIC)

    @torch.no_grad()
    def denoise(self, rows: CSR, users: Tensor, stream: RandomStream) -> Iterator[tuple[int, Tensor]]:
        """Yield (first item, denoised values (B, items of the block)) over own items in ascending order of their ids.

        Args:
            rows: the clean rows at own items.
            users: int64 (B,), ids that key the noise, if any.
            stream: random stream of this modality and epoch.
        """
        by_id = self._columns.by_id
        if self._sampling_noise:
            x_BC = self._step_by_step(self._start(rows, users, stream), users, stream)
            yield 0, x_BC if by_id is None else x_BC[:, by_id]
            return
        weight, bias = self._output_weight, self._denoiser.output_bias
        hidden_BH = operand(self._hidden_chain(rows, users, stream), like=weight)
        step = max(1, BLOCK_ELEMENTS // max(rows.num_rows, 1))
        for start in range(0, max(rows.num_columns, 1), step):
            block = slice(start, start + step) if by_id is None else by_id[start : start + step]
            yield start, biased_product(bias[block], hidden_BH, weight[block].T)

    @torch.no_grad()
    def denoised_at(self, rows: CSR, users: Tensor, stream: RandomStream) -> Tensor:
        """Return the denoised values at the stored entries of the clean rows alone, (entries,).

        The arguments are those of ``denoise``. No product over all items is taken.
        """
        if self._sampling_noise:
            return self._step_by_step(self._start(rows, users, stream), users, stream)[rows.row_ids, rows.indices]
        hidden_BH = self._hidden_chain(rows, users, stream)
        weight, bias = self._denoiser.output_weight, self._denoiser.output_bias
        return rows.products_at(hidden_BH, weight).add_(bias[rows.indices])

    def _start(self, rows: CSR, users: Tensor, stream: RandomStream) -> Tensor:
        """Return x_T at own items (B, C)."""
        if self._sampling_steps == 0:
            return rows.dense()
        return self._corrupted(rows, users, stream).whole.float()

    def _corrupted(self, rows: CSR, users: Tensor, stream: RandomStream) -> NoisyRows:
        t = torch.full_like(users, self._sampling_steps - 1)
        return NoisyRows(self._schedule, rows, t, users, self._columns, stream.child("start"))

    def _hidden_chain(self, rows: CSR, users: Tensor, stream: RandomStream) -> Tensor:
        """Return a_0, the last hidden layer of f(x_1, 0)."""
        projected, norms = self._projected(rows, users, stream)
        # p_t = projected + constant, so that what is the same in all rows takes no pass over them.
        constant_H = torch.zeros_like(self._offset_H)
        for step in range(self._schedule.num_timesteps - 1, 0, -1):
            coef1, coef2 = self._coefficients(step)
            hidden = self._hidden(projected, users.new_full((1,), step), constant_H, norms)
            rounded = operand(hidden, like=self._transition_HH)
            add_product_(projected, rounded, self._transition_HH, beta=coef2, alpha=coef1)
            constant_H = coef1 * self._offset_H + coef2 * constant_H
            if norms is not None:
                norms.step(hidden, coef1, coef2)
        return self._hidden(projected, users.new_zeros(1), constant_H, norms)

    def _hidden(self, projected: Tensor, t: Tensor, constant_H: Tensor, norms: "_Norms | None") -> Tensor:
        """Return the last hidden layer of f(x_t, t)."""
        if norms is not None:
            projected, constant_H = (projected + constant_H) / norms.of_rows()[:, None], torch.zeros_like(constant_H)
        return self._denoiser.hidden_of_row(projected, t, constant_H)

    def _projected(self, rows: CSR, users: Tensor, stream: RandomStream) -> "tuple[Tensor, _Norms | None]":
        """Return x_T W_in, and where rows are normalised what their norms follow from."""
        weight = self._denoiser.input_weight
        corrupted = None if self._sampling_steps == 0 else self._corrupted(rows, users, stream)

        def times(table: Tensor) -> Tensor:
            return self._sum(rows.matmul(table) if corrupted is None else project(corrupted, table))

        if self._quadratic is None:
            return times(weight), None
        if corrupted is None:
            squares_B = rows.row_counts.to(weight.dtype)
        else:
            squares_B = torch.stack([x_t.square().sum(dim=1) for _, x_t in corrupted.blocks()]).sum(dim=0)
        through = times(self._denoiser.output_weight), times(self._denoiser.output_bias[:, None])[:, 0]
        return times(weight), _Norms(self._quadratic, self._sum(squares_B), *through)

    def _step_by_step(self, x_BC: Tensor, users: Tensor, stream: RandomStream) -> Tensor:
        """Return x_0 at own items from x_T, one denoised row per step."""
        for step in range(self._schedule.num_timesteps - 1, -1, -1):
            coef1, coef2 = self._coefficients(step)
            denoised_BC = self._denoiser(x_BC, torch.full_like(users, step)).mul_(coef1)
            x_BC = denoised_BC.add_(x_BC.mul_(coef2))  # in place: whole rows are what takes the memory here
            if self._sampling_noise and step > 0:
                noise = stream.child("posterior", step).normal_rows(users, self._columns.ids)
                x_BC += float(self._schedule.posterior_variance[step].sqrt()) * noise
        return x_BC

    def _coefficients(self, step: int) -> tuple[float, float]:
        return float(self._schedule.posterior_mean_coef1[step]), float(self._schedule.posterior_mean_coef2[step])


class Quadratic(NamedTuple):
    """What the squared norm of h W_out^T + m b_out follows from, over the items of all workers of a row.

    Attributes:
        gram_HH: W_out^T W_out.
        linear_H: b_out W_out.
        constant: |b_out|^2, (1,).
    """

    gram_HH: Tensor
    linear_H: Tensor
    constant: Tensor

    def squares(self, hidden_BH: Tensor) -> Tensor:
        """Return h W_out^T W_out h of each row, (B,), from the blocks on and above the diagonal alone."""
        width = hidden_BH.shape[1]
        total_B = hidden_BH.new_zeros(hidden_BH.shape[0])
        for start in range(0, width, _NORM_BLOCK):
            block = slice(start, min(start + _NORM_BLOCK, width))
            size = block.stop - start
            through = hidden_BH[:, block] @ self.gram_HH[block, start:]
            through[:, size:] *= 2
            total_B += torch.linalg.vecdot(through, hidden_BH[:, start:])
        return total_B


class _Norms:
    """|x_t| of a batch of rows along the chain.

    Every x_t is gamma x_T + h W_out^T + m b_out with numbers gamma and m and h (B x H): at first 1, 0 and 0, then
    h <- coef1 a_t + coef2 h, m <- coef1 + coef2 m, gamma <- coef2 gamma. With q = x_T W_out and s = x_T b_out, which
    take one pass over the entries of x_T,

        |x_t|^2 = gamma^2 |x_T|^2 + 2 gamma (h q + m s) + h W_out^T W_out h + 2 m h W_out^T b_out + m^2 |b_out|^2

    so no row over the items is ever formed. The terms nearly cancel only where a row that is not zero is denoised to
    almost nothing; there the norm has an absolute error of some 1e-4 of its largest term's.

    Args:
        quadratic: of the output layer.
        squares_B: |x_T|^2.
        through_BH: q.
        through_B: s.
    """

    def __init__(self, quadratic: Quadratic, squares_B: Tensor, through_BH: Tensor, through_B: Tensor) -> None:
        self._quadratic = quadratic
        self._squares_B, self._through_BH, self._through_B = squares_B, through_BH, through_B
        self._hidden_BH: Tensor | None = None
        self._share, self._biases = 1.0, 0.0  # gamma and m

    def step(self, hidden_BH: Tensor, coef1: float, coef2: float) -> None:
        """Go from x_t to x_{t-1}."""
        before = self._hidden_BH
        self._hidden_BH = hidden_BH * coef1 if before is None else before.mul_(coef2).add_(hidden_BH, alpha=coef1)
        self._share, self._biases = coef2 * self._share, coef1 + coef2 * self._biases

    def of_rows(self) -> Tensor:
        """Return what to divide each row by, (B,)."""
        share, biases = self._share, self._biases
        if self._hidden_BH is None:
            return row_norm(self._squares_B)
        (_, linear_H, constant), hidden_BH = self._quadratic, self._hidden_BH
        squares_B = share**2 * self._squares_B + 2 * share * biases * self._through_B + biases**2 * constant
        squares_B += torch.linalg.vecdot(hidden_BH, self._through_BH) * (2 * share)
        squares_B += hidden_BH @ linear_H * (2 * biases)
        return row_norm(squares_B.add_(self._quadratic.squares(hidden_BH)).clamp_(min=0))
