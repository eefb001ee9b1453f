import pytest
import torch

from diffmm_dist.diffusion import equations
from diffmm_dist.diffusion.schedule import at
from tests.support.builders import schedule

# The published table for T = 5.
BETAS = [1.0e-4, 4.97505e-4, 4.97753e-4, 4.98000e-4, 4.98249e-4]
ALPHAS_CUMPROD = [0.9999, 0.99940254, 0.99890509, 0.99840763, 0.99791018]
LOSS_WEIGHTS = [1, 8326.2344, 760.4489, 285.3202, 149.4866]
COEF1 = [1.0, 0.83266507, 0.45446995, 0.31257128, 0.2382270]
COEF2 = [0.0, 0.16733492, 0.54553001, 0.68742865, 0.7617729]
VARIANCE = [0, 8.327e-5, 2.716e-4, 3.424e-4, 3.796e-4]


def test_published_table():
    table = schedule()
    for actual, expected in (
        (table.betas, BETAS),
        (table.alphas_cumprod, ALPHAS_CUMPROD),
        (table.loss_weights, LOSS_WEIGHTS),
        (table.posterior_mean_coef1, COEF1),
        (table.posterior_mean_coef2, COEF2),
        (table.posterior_variance, VARIANCE),
    ):
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=2e-4, atol=1e-8)


@pytest.mark.parametrize("num_timesteps", [1, 2, 50])
@pytest.mark.parametrize("noise_scale", [0.1, 1.0, 40.0])
def test_the_last_step_returns_the_prediction_for_every_schedule(num_timesteps, noise_scale):
    table = schedule(num_timesteps, noise_scale=noise_scale)
    assert table.posterior_mean_coef1[0].item() == pytest.approx(1)
    assert table.posterior_mean_coef2[0].item() == pytest.approx(0, abs=1e-12)
    assert bool(torch.isfinite(table.loss_weights).all())


@pytest.mark.parametrize("num_timesteps", [1, 2, 50])
def test_the_tables_equal_the_equations(num_timesteps):
    table, ones = schedule(num_timesteps), torch.ones(1, 1, dtype=torch.float64)
    for t in range(num_timesteps):
        coef1, coef2 = (
            equations.posterior_mean(*pair, t, betas_T=table.betas)[0, 0]
            for pair in ((ones, 0 * ones), (0 * ones, ones))
        )
        torch.testing.assert_close(table.posterior_mean_coef1[t], coef1)
        torch.testing.assert_close(table.posterior_mean_coef2[t], coef2)
        torch.testing.assert_close(table.posterior_variance[t], equations.posterior_variance(t, betas_T=table.betas))
        weight = equations.elbo(ones, 0 * ones, torch.tensor([t]), alphas_cumprod_T=table.alphas_cumprod)
        torch.testing.assert_close(table.loss_weights[t], weight[0])


def test_at_looks_up_float32():
    values = at(schedule().betas, torch.tensor([4, 0]))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.tensor([4.98249e-4, 1e-4]))
