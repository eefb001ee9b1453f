"""Gaussian diffusion of interaction rows: training losses and the reverse chain.

Shape suffixes: B rows, C own items (all of them in a world of one), D embedding, H hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffmm_dist.diffusion.denoiser import TRAFFIC, Denoiser
from diffmm_dist.diffusion.noise import NoisyRows, hidden_from_hidden_noise, project
from diffmm_dist.diffusion.output import Products, error_and_signal
from diffmm_dist.diffusion.schedule import DiffusionSchedule, at
from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.sums import summed
from diffmm_dist.precision import add_product_, biased_product, operand, product
from diffmm_dist.sparse import CSR

BLOCK_ELEMENTS = 1 << 20  # denoised values held at a time: 4 MiB, which the next pass finds in the cache


@dataclass(frozen=True)
class DenoisingLosses:
    """Losses of each row, (B,).

    Attributes:
        elbo: own items' share of the weighted squared error.
        msi: the modality signal, the same on all workers of a row.
    """

    elbo: Tensor
    msi: Tensor


def training_losses(
    denoiser: Denoiser,
    noisy: NoisyRows,
    *,
    modal_items_CD: Tensor,
    item_table_CD: Tensor,
    products: Products = "auto",
    noise: Literal["exact", "hidden"] = "exact",
) -> DenoisingLosses:
    """Return the denoising losses of a batch of rows (models/diffmm/README.md, "denoise").

    elbo = w_t mean_I (f - x_start)^2 with w_t = SNR(t - 1) - SNR(t);
    msi = mean_D (f G - x_start E)^2, the sums over items not divided by the degree.

    Args:
        denoiser: f.
        noisy: the batch, x_t and with it x_start and t.
        modal_items_CD: G, projected features of own items, without gradient.
        item_table_CD: E, embeddings of own items, without gradient.
        products: how the output layer is computed (output.py).
        noise: ``hidden`` draws it behind the input layer (noise.py).
    """
    if noise == "hidden":
        hidden_BH = hidden_from_hidden_noise(denoiser, noisy)
    else:
        hidden_BH = denoiser.hidden(project(noisy, denoiser.input_weight), noisy.t)
    error_B, signal_BD = error_and_signal(denoiser, hidden_BH, noisy.rows, modal_items_CD, products=products)
    difference_BD = summed(signal_BD - noisy.rows.matmul(item_table_CD), noisy.columns.world, purpose=TRAFFIC)
    weight_B = at(noisy.schedule.loss_weights, noisy.t) / noisy.columns.total
    return DenoisingLosses(weight_B * error_B, difference_BD.square().mean(dim=1))


class ReverseChain:
    """Denoises clean rows: x_T = x_start (or corrupted), then x_{t-1} = coef1_t f(x_t, t) + coef2_t x_t down to t = 0.

    The input layer is linear in x_t and so is x_{t-1} in f's last hidden layer a_t. So the chain runs on
    p_t = x_t W_in (B x H) instead of x_t: p_{t-1} = coef1_t (a_t (W_out^T W_in) + b_out W_in) + coef2_t p_t, with
    W_out^T W_in (H x H) computed once. Since coef1_0 = 1 and coef2_0 = 0 for every schedule, the result is
    f(x_1, 0) = a_0 W_out^T + b_out: one product over the items instead of 2 T, taken block by block of items.
    Posterior noise and input normalisation act on x_t itself; with them the chain goes step by step.

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
        self._stepwise = sampling_noise or denoiser.normalize_input
        if not self._stepwise:
            self._output_weight = operand(denoiser.output_weight)
            self._transition_HH = operand(self._sum(product(self._output_weight.T, operand(denoiser.input_weight))))
            self._offset_H = self._sum(denoiser.output_bias @ denoiser.input_weight)

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
        if self._stepwise:
            x_BC = self._step_by_step(self._start(rows, users, stream), users, stream)
            yield 0, x_BC if by_id is None else x_BC[:, by_id]
            return
        weight, bias = self._output_weight, self._denoiser.output_bias
        hidden_BH = operand(self._hidden_chain(rows, users, stream), like=weight)
        step = max(1, BLOCK_ELEMENTS // max(rows.num_rows, 1))
        for start in range(0, max(rows.num_columns, 1), step):
            block = slice(start, start + step) if by_id is None else by_id[start : start + step]
            yield start, biased_product(bias[block], hidden_BH, weight[block].T)

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
        weight = self._denoiser.input_weight
        if self._sampling_steps == 0:
            projected = self._sum(rows.matmul(weight))
        else:
            projected = self._sum(project(self._corrupted(rows, users, stream), weight))
        # p_t = projected + constant, so that what is the same in all rows takes no pass over them.
        constant_H = torch.zeros_like(self._offset_H)
        for step in range(self._schedule.num_timesteps - 1, 0, -1):
            coef1, coef2 = self._coefficients(step)
            hidden = self._denoiser.hidden_of_row(projected, users.new_full((1,), step), constant_H)
            rounded = operand(hidden, like=self._transition_HH)
            add_product_(projected, rounded, self._transition_HH, beta=coef2, alpha=coef1)
            constant_H = coef1 * self._offset_H + coef2 * constant_H
        return self._denoiser.hidden_of_row(projected, users.new_zeros(1), constant_H)

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
