"""Gaussian diffusion of interaction rows: corruption, training losses, and the reverse chain.

Shape suffixes: B rows, I items, D embedding, H hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.diffusion.schedule import DiffusionSchedule, at
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR

_BLOCK_ELEMENTS = 1 << 23  # denoised values held at a time: 32 MiB


def q_sample(schedule: DiffusionSchedule, rows: CSR, t_B: Tensor, noise_BI: Tensor) -> Tensor:
    """Return x_t = sqrt(alphabar_t) x_start + sqrt(1 - alphabar_t) noise, written over ``noise_BI``."""
    x_t = noise_BI.mul_(at(schedule.sqrt_one_minus_alphas_cumprod, t_B)[:, None])
    scale_B = at(schedule.sqrt_alphas_cumprod, t_B)
    return x_t.index_put_((rows.row_ids, rows.indices), scale_B[rows.row_ids], accumulate=True)


@dataclass(frozen=True)
class DenoisingLosses:
    """Losses of each row, (B,): the weighted squared error and the modality signal."""

    elbo: Tensor
    msi: Tensor


def training_losses(
    schedule: DiffusionSchedule,
    denoiser: Denoiser,
    rows: CSR,
    t_B: Tensor,
    noise_BI: Tensor,
    *,
    dropout_mask_BI: Tensor | None,
    modal_items_ID: Tensor,
    item_table_ID: Tensor,
) -> DenoisingLosses:
    """Return the denoising losses of a batch of rows (models/diffmm/README.md, "denoise").

    elbo = w_t mean_I (f - x_start)^2 with w_t = SNR(t - 1) - SNR(t);
    msi = mean_D (f G - x_start E)^2, the sums over items not divided by the degree. With the residual
    f - x_start held once, f G - x_start E = (f - x_start) G + x_start (G - E).

    Args:
        schedule: the noise schedule.
        denoiser: f.
        rows: x_start, the clean rows.
        t_B: int64 timesteps.
        noise_BI: standard normal; overwritten.
        dropout_mask_BI: factors on the denoiser's input, or None.
        modal_items_ID: G, projected features of the modality, without gradient.
        item_table_ID: E, item embeddings, without gradient.
    """
    prediction = denoiser(q_sample(schedule, rows, t_B, noise_BI), t_B, dropout_mask_BI=dropout_mask_BI)
    ones = torch.ones(rows.num_entries, device=prediction.device)
    residual_BI = prediction.index_put_((rows.row_ids, rows.indices), -ones, accumulate=True)
    error_B = _mean_square(residual_BI)
    signal_BD = residual_BI @ modal_items_ID + rows.matmul(modal_items_ID - item_table_ID)
    return DenoisingLosses(at(schedule.loss_weights, t_B) * error_B, signal_BD.square().mean(dim=1))


def _mean_square(x_BI: Tensor) -> Tensor:
    mean_B: Tensor = _MeanSquare.apply(x_BI)  # type: ignore[no-untyped-call]
    return mean_B


class _MeanSquare(torch.autograd.Function):
    """Mean of squares of each row, reading x once forward and once backward, without B x I temporaries in between."""

    @staticmethod
    def forward(ctx: Any, x_BI: Tensor) -> Tensor:
        ctx.save_for_backward(x_BI)
        norm_B: Tensor = torch.linalg.vector_norm(x_BI, dim=1)
        return norm_B.square() / x_BI.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x_BI: Tensor = ctx.saved_tensors[0]
        return x_BI * (gradients[0] * (2 / x_BI.shape[1]))[:, None]


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

    def __init__(
        self, schedule: DiffusionSchedule, denoiser: Denoiser, *, sampling_steps: int = 0, sampling_noise: bool = False
    ) -> None:
        self._schedule = schedule
        self._denoiser = denoiser
        self._sampling_steps = sampling_steps
        self._sampling_noise = sampling_noise
        self._stepwise = sampling_noise or denoiser.normalize_input
        if not self._stepwise:
            with torch.no_grad():
                self._transition_HH = denoiser.output_weight.T @ denoiser.input_weight
                self._offset_H = denoiser.output_bias @ denoiser.input_weight

    @torch.no_grad()
    def denoise(self, rows: CSR, users: Tensor, stream: RandomStream) -> Iterator[tuple[int, Tensor]]:
        """Yield (first item, denoised values (B, items of the block)) over all items, in order.

        Args:
            rows: the clean rows.
            users: int64 (B,), ids that key the noise, if any.
            stream: random stream of this modality and epoch.
        """
        if self._stepwise:
            yield 0, self._step_by_step(self._start(rows, users, stream), users, stream)
            return
        hidden_BH = self._hidden_chain(rows, users, stream)
        weight, bias = self._denoiser.output_weight, self._denoiser.output_bias
        step = max(1, _BLOCK_ELEMENTS // max(rows.num_rows, 1))
        for start in range(0, rows.num_columns, step):
            block = slice(start, start + step)
            yield start, torch.addmm(bias[block], hidden_BH, weight[block].T)

    def _start(self, rows: CSR, users: Tensor, stream: RandomStream) -> Tensor:
        """Return x_T (B, I)."""
        if self._sampling_steps == 0:
            return rows.dense()
        noise = stream.child("start").normal_rows(users, rows.num_columns)
        return q_sample(self._schedule, rows, torch.full_like(users, self._sampling_steps - 1), noise)

    def _hidden_chain(self, rows: CSR, users: Tensor, stream: RandomStream) -> Tensor:
        """Return a_0, the last hidden layer of f(x_1, 0)."""
        weight = self._denoiser.input_weight
        if self._sampling_steps == 0:
            projected = rows.matmul(weight)
        else:
            projected = self._start(rows, users, stream) @ weight
        for step in range(self._schedule.num_timesteps - 1, 0, -1):
            coef1, coef2 = self._coefficients(step)
            hidden = self._denoiser.activate(projected, torch.full_like(users, step))
            projected = coef1 * torch.addmm(self._offset_H, hidden, self._transition_HH) + coef2 * projected
        return self._denoiser.activate(projected, torch.zeros_like(users))

    def _step_by_step(self, x_BI: Tensor, users: Tensor, stream: RandomStream) -> Tensor:
        """Return x_0 from x_T, one denoised row per step."""
        for step in range(self._schedule.num_timesteps - 1, -1, -1):
            coef1, coef2 = self._coefficients(step)
            x_BI = coef1 * self._denoiser(x_BI, torch.full_like(users, step)) + coef2 * x_BI
            if self._sampling_noise and step > 0:
                noise = stream.child("posterior", step).normal_rows(users, x_BI.shape[1])
                x_BI += float(self._schedule.posterior_variance[step].sqrt()) * noise
        return x_BI

    def _coefficients(self, step: int) -> tuple[float, float]:
        return float(self._schedule.posterior_mean_coef1[step]), float(self._schedule.posterior_mean_coef2[step])
