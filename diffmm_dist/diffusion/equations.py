"""The equations of Gaussian diffusion as in the papers, on dense rows; noise.py and gaussian.py are the fast forms.

DDPM is Ho et al., NeurIPS 2020, arXiv:2006.11239; DiffMM is arXiv:2406.11781 (models/diffmm/README.md). Tables by
timestep lie on the device of the rows.

Shape suffixes: B rows, I items, D embedding, T timesteps.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def q_sample(x_start_BI: Tensor, t_B: Tensor, noise_BI: Tensor, *, alphas_cumprod_T: Tensor) -> Tensor:
    """Return x_t = sqrt(abar_t) x_start + sqrt(1 - abar_t) noise, (B, I) (DDPM, equation 4)."""
    abar_B1 = alphas_cumprod_T[t_B][:, None]
    return abar_B1.sqrt().to(x_start_BI) * x_start_BI + (1 - abar_B1).sqrt().to(x_start_BI) * noise_BI


def posterior_mean(x_start_BI: Tensor, x_t_BI: Tensor, t: int, *, betas_T: Tensor) -> Tensor:
    """Return the mean of q(x_{t-1} | x_t, x_start), (B, I) (DDPM, equation 7): the two, weighted; abar_{-1} = 1."""
    abar, previous = (1 - betas_T[: t + 1]).prod(), (1 - betas_T[:t]).prod()
    coef1 = betas_T[t] * previous.sqrt() / (1 - abar)
    coef2 = (1 - previous) * (1 - betas_T[t]).sqrt() / (1 - abar)
    return float(coef1) * x_start_BI + float(coef2) * x_t_BI


def posterior_variance(t: int, *, betas_T: Tensor) -> Tensor:
    """Return the variance of q(x_{t-1} | x_t, x_start), () (DDPM, equation 7)."""
    return betas_T[t] * (1 - (1 - betas_T[:t]).prod()) / (1 - (1 - betas_T[: t + 1]).prod())


def p_sample_loop(
    predict: Callable[[Tensor, Tensor], Tensor],
    x_BI: Tensor,
    *,
    betas_T: Tensor,
    noise: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Return x_0 from x_T, (B, I) (DDPM, algorithm 2, for a network that predicts x_start).

    Args:
        predict: x_start (B, I) from x_t (B, I) and its timesteps (B,).
        x_BI: x_T.
        betas_T: of the noise schedule.
        noise: of each step but the last, (B, I); None takes the mean of every step.
    """
    for t in range(len(betas_T) - 1, -1, -1):
        t_B = torch.full((len(x_BI),), t, device=x_BI.device)
        x_BI = posterior_mean(predict(x_BI, t_B), x_BI, t, betas_T=betas_T)
        if noise is not None and t > 0:
            x_BI = x_BI + posterior_variance(t, betas_T=betas_T).sqrt().to(x_BI) * noise[t]
    return x_BI


def signal_to_noise(alphas_cumprod: Tensor) -> Tensor:
    """Return SNR = abar / (1 - abar) of each value."""
    return alphas_cumprod / (1 - alphas_cumprod)


def elbo(prediction_BI: Tensor, x_start_BI: Tensor, t_B: Tensor, *, alphas_cumprod_T: Tensor) -> Tensor:
    """Return w_t mean_I (prediction - x_start)^2, (B,), w_t = SNR(t-1) - SNR(t) and w_0 = 1 (DiffMM, "denoise")."""
    snr_T = signal_to_noise(alphas_cumprod_T)
    weight_B = torch.where(t_B > 0, snr_T[(t_B - 1).clamp(min=0)] - snr_T[t_B], 1.0)
    return weight_B.to(x_start_BI) * (prediction_BI - x_start_BI).square().mean(dim=1)


def msi(prediction_BI: Tensor, x_start_BI: Tensor, *, modal_items_ID: Tensor, item_table_ID: Tensor) -> Tensor:
    """Return mean_D (prediction G - x_start E)^2, (B,), the modality signal (DiffMM, "denoise")."""
    return (prediction_BI @ modal_items_ID - x_start_BI @ item_table_ID).square().mean(dim=1)
