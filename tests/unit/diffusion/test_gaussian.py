import pytest
import torch

from diffmm_dist.diffusion import gaussian
from diffmm_dist.diffusion.denoiser import Denoiser, timestep_embedding
from diffmm_dist.diffusion.gaussian import ReverseChain, q_sample, training_losses
from diffmm_dist.parallel.random import RandomStream
from tests.support import reference
from tests.support.builders import random_pairs, random_rows, schedule

ROWS = random_pairs(6, 11, share=0.3, empty_rows=[2])
USERS = torch.arange(6) + 40


def denoiser(hidden_dims=(8,), scale=1.0, **options):
    model = Denoiser(11, hidden_dims, time_embedding_dim=options.pop("time_embedding_dim", 10), **options)
    model.initialize(RandomStream.of(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def dense_predict(model, x, t):
    """The denoiser from its definition: one concatenated input layer."""
    if isinstance(t, int):
        t = torch.full((x.shape[0],), t)
    if model.normalize_input:
        x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    code = timestep_embedding(t, model.time_embedding_dim) @ model.time_layer.weight.T + model.time_layer.bias
    weight = torch.cat([model.input_weight, model.input_time_weight])
    hidden = torch.tanh(torch.cat([x, code], dim=1) @ weight + model.input_bias)
    for layer in model.hidden_layers:
        hidden = torch.tanh(hidden @ layer.weight.T + layer.bias)
    return hidden @ model.output_weight.T + model.output_bias


def test_timestep_embedding_at_one_and_odd_widths():
    code = timestep_embedding(torch.tensor([1]), 10)[0]
    torch.testing.assert_close(code[:2], torch.tensor([0.540302, 0.987467]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(code[5:7], torch.tensor([0.841471, 0.157827]), rtol=1e-5, atol=1e-6)
    assert timestep_embedding(torch.tensor([0, 3]), 5)[:, 4].tolist() == [0, 0]


def test_initialization_has_the_published_spread():
    model = Denoiser(400, (300,), time_embedding_dim=10)
    model.initialize(RandomStream.of(1))
    assert model.input_weight.std().item() == pytest.approx((2 / (410 + 300)) ** 0.5, rel=0.02)
    assert model.input_time_weight.std().item() == pytest.approx((2 / (410 + 300)) ** 0.5, rel=0.06)
    assert model.output_weight.std().item() == pytest.approx((2 / 700) ** 0.5, rel=0.02)
    assert model.output_bias.std().item() == pytest.approx(0.001, rel=0.15)
    assert sum(p.numel() for p in model.parameters()) == 2 * 400 * 300 + 300 + 400 + 10 * 300 + 110


@pytest.mark.parametrize("hidden_dims", [(8,), (8, 5), (4, 6, 3)])
@pytest.mark.parametrize("normalize_input", [False, True])
def test_forward_equals_the_definition(hidden_dims, normalize_input):
    model = denoiser(hidden_dims, 3.0, normalize_input=normalize_input, time_embedding_dim=7)
    x, t = random_rows(6, 11), torch.tensor([0, 1, 2, 3, 4, 4])
    torch.testing.assert_close(model(x, t), dense_predict(model, x, t))


def test_q_sample():
    table, t = schedule(), torch.tensor([0, 1, 2, 3, 4, 4])
    noise = random_rows(6, 11)
    expected = (
        table.sqrt_alphas_cumprod[t][:, None] * reference.dense(ROWS)
        + table.sqrt_one_minus_alphas_cumprod[t][:, None] * noise
    )
    torch.testing.assert_close(q_sample(table, ROWS, t, noise.clone()), expected.float())


@pytest.mark.parametrize("with_mask", [False, True])
def test_training_losses_and_gradients_equal_the_reference(with_mask):
    table, t = schedule(), torch.tensor([0, 1, 2, 3, 4, 4])
    noise, modal, items = random_rows(6, 11, 1), random_rows(11, 4, 2), random_rows(11, 4, 3)
    mask = RandomStream.of(5).dropout_rows(USERS, 11, keep_prob=0.5) if with_mask else None
    results = []
    for plain in (False, True):
        model = denoiser(scale=3.0)
        if plain:
            factors = mask if with_mask else torch.ones(6, 11)
            elbo, msi = reference.denoising_losses(
                table, lambda x, t, model=model, f=factors: dense_predict(model, x * f, t),
                reference.dense(ROWS), t, noise, modal, items,
            )  # fmt: skip
        else:
            losses = training_losses(
                table, model, ROWS, t, noise.clone(),
                dropout_mask_BI=mask, modal_items_ID=modal, item_table_ID=items,
            )  # fmt: skip
            elbo, msi = losses.elbo, losses.msi
        (elbo.mean() + 0.1 * msi.mean()).backward()
        results.append((elbo, msi, *(p.grad for p in model.parameters())))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden_dims", [(8,), (8, 5)])
@pytest.mark.parametrize("num_timesteps", [1, 5])
@pytest.mark.parametrize("options", [{}, {"sampling_steps": 1}, {"sampling_noise": True}, {"normalize_input": True}])
def test_reverse_chain_equals_step_by_step(hidden_dims, num_timesteps, options, monkeypatch):
    options = dict(options)
    table = schedule(num_timesteps)
    model = denoiser(hidden_dims, 4.0, normalize_input=options.pop("normalize_input", False))
    stream = RandomStream.of(8)
    chain = ReverseChain(table, model, **options)
    monkeypatch.setattr(gaussian, "_BLOCK_ELEMENTS", 24)  # four items per block
    blocks = list(chain.denoise(ROWS, USERS, stream))
    assert [start for start, _ in blocks] == ([0] if chain._stepwise else [0, 4, 8])
    x = reference.dense(ROWS)
    if options.get("sampling_steps"):
        steps = torch.full_like(USERS, options["sampling_steps"] - 1)
        x = q_sample(table, ROWS, steps, stream.child("start").normal_rows(USERS, 11))
    noise = None
    if options.get("sampling_noise"):
        noise = [stream.child("posterior", t).normal_rows(USERS, 11) for t in range(num_timesteps)]
    expected = reference.reverse_chain(table, lambda x, t: dense_predict(model, x, t), x, noise)
    # Relative to the largest value: processors sum in different orders, and an element near zero is a difference.
    atol = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(torch.cat([block for _, block in blocks], dim=1), expected, rtol=1e-4, atol=atol)


def test_a_constant_denoiser_gives_its_constant():
    model = denoiser()
    with torch.no_grad():
        model.output_weight.zero_()
        model.output_bias.copy_(torch.arange(11.0))
    ((_, block),) = ReverseChain(schedule(), model).denoise(ROWS, USERS, RandomStream.of(0))
    torch.testing.assert_close(block, torch.arange(11.0).expand(6, -1))
