"""The variance schedule and everything that follows from it, in float64 (models/diffmm/README.md, "denoise")."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LossWeights = Literal["snr", "uniform"]
Floats = npt.NDArray[np.float64]


class DiffusionSchedule:
    """Tables by timestep t = 0 .. T - 1, float64 (T,).

    The noise variances v_t = linspace(s v_min, s v_max, T) are read as 1 - alphabar_t, the betas recovered from them,
    beta_0 replaced by 1e-4, and the cumulative products taken again.

    Args:
        num_timesteps: T.
        noise_scale: s.
        noise_min: v_min.
        noise_max: v_max.
        loss_weights: ``snr``, or ``uniform`` for 1 at every timestep.
        device: of the tables that timesteps of rows are looked up in, which are there before a step needs them. The
            others are read by the host.

    Attributes:
        betas: beta_t.
        alphas_cumprod: alphabar_t = prod (1 - beta).
        posterior_variance: beta_t (1 - alphabar_{t-1}) / (1 - alphabar_t).
        posterior_mean_coef1: beta_t sqrt(alphabar_{t-1}) / (1 - alphabar_t), the weight of x_start.
        posterior_mean_coef2: (1 - alphabar_{t-1}) sqrt(1 - beta_t) / (1 - alphabar_t), the weight of x_t.
        loss_weights: SNR(t - 1) - SNR(t), and 1 at t = 0.
    """

    def __init__(self, num_timesteps: int, *, noise_scale: float, noise_min: float, noise_max: float,
                 loss_weights: LossWeights = "snr", device: torch.device | None = None) -> None:  # fmt: skip
        self.num_timesteps = num_timesteps
        betas = _betas(np.linspace(noise_scale * noise_min, noise_scale * noise_max, num_timesteps))
        alphas_cumprod = np.cumprod(1 - betas)
        previous = np.append(1.0, alphas_cumprod[:-1])
        signal_to_noise = alphas_cumprod / (1 - alphas_cumprod)
        self.betas = torch.from_numpy(betas)
        self.alphas_cumprod = torch.from_numpy(alphas_cumprod)
        self.sqrt_alphas_cumprod = self.alphas_cumprod.sqrt().to(device)
        self.sqrt_one_minus_alphas_cumprod = (1 - self.alphas_cumprod).sqrt().to(device)
        self.posterior_variance = torch.from_numpy(betas * (1 - previous) / (1 - alphas_cumprod))
        self.posterior_mean_coef1 = torch.from_numpy(betas * np.sqrt(previous) / (1 - alphas_cumprod))
        self.posterior_mean_coef2 = torch.from_numpy((1 - previous) * np.sqrt(1 - betas) / (1 - alphas_cumprod))
        self.loss_weights = torch.from_numpy(np.append(1.0, signal_to_noise[:-1] - signal_to_noise[1:])).to(device)
        if loss_weights == "uniform":
            self.loss_weights = torch.ones_like(self.loss_weights)


def at(table: Tensor, t: Tensor) -> Tensor:
    """Return a table's float32 value at each timestep of ``t``, of t's shape."""
    return table[t].to(torch.float32)


def _betas(variances: Floats) -> Floats:
    alphas_cumprod = 1 - variances
    betas: Floats = np.append(1e-4, np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999))
    return betas
