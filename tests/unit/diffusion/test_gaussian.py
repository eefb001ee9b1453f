from functools import partial

import pytest
import torch

from diffmm_dist.bench.plain import denoising_losses
from diffmm_dist.diffusion import gaussian, noise
from diffmm_dist.diffusion.denoiser import Denoiser, timestep_embedding
from diffmm_dist.diffusion.equations import p_sample_loop, q_sample
from diffmm_dist.diffusion.gaussian import ReverseChain, training_losses
from diffmm_dist.diffusion.noise import NoisyRows, hidden_from_hidden_noise, project
from diffmm_dist.diffusion.output import error_and_signal, gram, gram_pays
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.precision import matmul_precision
from diffmm_dist.sparse import CSR
from tests.support import reference
from tests.support.builders import GivenRows, random_pairs, random_rows, schedule

ROWS = random_pairs(6, 11, share=0.3, empty_rows=[2])
USERS = torch.arange(6) + 40


def denoiser(hidden_dims=(8,), scale=1.0, **options):
    model = Denoiser(
        Columns.whole(11), hidden_dims, time_embedding_dim=options.pop("time_embedding_dim", 10), **options
    )
    model.initialize(RandomStream.of(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def dense_predict(model, x, t):
    """The denoiser from its definition: one concatenated input layer."""
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
    model = Denoiser(Columns.whole(400), (300,), time_embedding_dim=10)
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


def noisy_rows(t, noise_stream, **options):
    return NoisyRows(schedule(), ROWS, t, USERS, Columns.whole(11), noise=noise_stream, **options)


def dense_noisy(t, noise_BI):
    """x_t from its definition."""
    return q_sample(reference.dense(ROWS), t, noise_BI, alphas_cumprod_T=schedule().alphas_cumprod)


T = torch.tensor([0, 1, 2, 3, 4, 4])


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("dropout", [None, RandomStream.of(5)])
@pytest.mark.parametrize("items_per_block", [3, 11])
def test_noisy_rows(normalized, dropout, items_per_block, monkeypatch):
    monkeypatch.setattr(noise, "BLOCK_ELEMENTS", 6 * items_per_block)
    given = random_rows(6, 11)
    noisy = noisy_rows(T, GivenRows(given, dropout), keep_prob=1.0 if dropout is None else 0.5, normalized=normalized)
    expected = dense_noisy(T, given)
    if normalized:
        expected = expected / expected.norm(dim=1, keepdim=True)
    if dropout is not None:
        expected = expected * dropout.dropout_rows(USERS, 11, keep_prob=0.5)
    blocks = list(noisy.blocks())
    assert len(blocks) == -(-11 // items_per_block)
    torch.testing.assert_close(torch.cat([values for _, values in blocks], dim=1), expected)
    weight = random_rows(11, 8, 7).requires_grad_()
    (project(noisy, weight) * random_rows(6, 8, 9)).sum().backward()
    torch.testing.assert_close(weight.grad, expected.T @ random_rows(6, 8, 9))


@pytest.mark.parametrize("products", ["direct", "gram"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_training_losses_and_gradients_equal_the_reference(with_mask, products):
    given, modal, items = random_rows(6, 11, 1), random_rows(11, 4, 2), random_rows(11, 4, 3)
    dropout = RandomStream.of(5) if with_mask else None
    results = []
    for plain in (False, True):
        model = denoiser(scale=3.0)
        if plain:
            factors = dropout.dropout_rows(USERS, 11, keep_prob=0.5) if with_mask else torch.ones(6, 11)
            elbo, msi = denoising_losses(
                lambda x, t, model=model, f=factors: dense_predict(model, x * f, t), schedule(),
                reference.dense(ROWS), T, given, modal, items,
            )  # fmt: skip
        else:
            noisy = noisy_rows(T, GivenRows(given, dropout), keep_prob=0.5 if with_mask else 1.0)
            losses = training_losses(
                model, noisy, table_CD=modal, target_BD=noisy.rows.matmul(items), products=products
            )
            elbo, msi = losses.elbo, losses.signal
        (elbo.mean() + 0.1 * msi.mean()).backward()
        results.append((elbo, msi, *(p.grad for p in model.parameters())))
    for ours, plain in zip(*results, strict=True):
        # Differences of terms as large as the largest element; Gram products sum them in another order.
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * max(1.0, float(plain.detach().abs().max())))


@pytest.mark.parametrize("hidden_dims", [(8,), (8, 5)])
def test_training_losses_with_rounded_operands(hidden_dims):
    results = []
    for precision in ("float32", "bfloat16"):
        model = denoiser(hidden_dims, scale=3.0)
        with matmul_precision(precision):
            noisy = noisy_rows(T, RandomStream.of(5), keep_prob=0.5)
            losses = training_losses(
                model,
                noisy,
                table_CD=random_rows(11, 4, 2),
                target_BD=noisy.rows.matmul(random_rows(11, 4, 3)),
                products="gram",
            )
        (losses.elbo.mean() + 0.1 * losses.signal.mean()).backward()
        results.append((losses.elbo.detach(), losses.signal.detach(), *(p.grad for p in model.parameters())))
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 5e-2 * exact.norm()
    assert not torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("width", [1, 255, 256, 257, 700])
def test_the_symmetric_product(width):
    weight = torch.randn(40, width, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    torch.testing.assert_close(gram(weight), weight.T @ weight)


def test_gram_products_are_taken_where_they_need_fewer_operations():
    assert gram_pays(num_rows=1024, num_items=6710, width=1000)
    assert not gram_pays(num_rows=600, num_items=6710, width=1000)
    assert gram_pays(num_rows=600, num_items=10**6, width=1000)  # 2.4 GB otherwise


@pytest.mark.parametrize("products", ["direct", "gram"])
def test_a_worker_without_items_has_no_share(products):
    model = Denoiser(Columns.whole(0), (8,), time_embedding_dim=4)
    hidden = random_rows(6, 8).requires_grad_()
    rows = CSR(torch.zeros(7, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 0)
    error, signal = error_and_signal(model, hidden, rows, torch.zeros(0, 4), products=products)
    assert not error.any()
    assert not signal.any()
    (error.sum() + signal.sum()).backward()
    assert not hidden.grad.any()


def test_hidden_noise_has_the_mean_and_covariance_of_noise_on_the_items():
    """What reaches the hidden layer, over many users with the same row, without and with dropout."""
    num_users, hidden = 40_000, 3
    users, t = torch.arange(num_users), torch.full((num_users,), 4)
    row = torch.tensor([0, 2, 5])
    rows = CSR(torch.arange(num_users + 1) * 3, row.repeat(num_users), 300)
    weight = random_rows(300, hidden, 5)
    model = Denoiser(Columns.whole(300), (hidden,), time_embedding_dim=4)
    model.initialize(RandomStream.of(3))
    with torch.no_grad():
        model.input_weight.copy_(weight)
    for keep_prob in (1.0, 0.5):
        noisy = NoisyRows(schedule(), rows, t, users, model.columns, RandomStream.of(1), keep_prob=keep_prob)
        model.hidden_of_row = lambda projected, _: projected
        ours, exact = hidden_from_hidden_noise(model, noisy).double(), project(noisy, weight).double()
        scale = exact.std(dim=0) / num_users**0.5
        assert bool(((ours.mean(dim=0) - exact.mean(dim=0)).abs() < 6 * scale).all())
        covariances = [torch.cov(values.T) for values in (ours, exact)]
        size = covariances[1].diagonal().mean()
        torch.testing.assert_close(*covariances, rtol=0, atol=float(size) * 6 * (2 / num_users) ** 0.5 * 1.5)


def test_hidden_noise_of_weights_without_a_covariance_is_nan_and_no_error():
    """So that the run ends with its own sentence, and nobody waits to hear of it before."""
    noisy = NoisyRows(schedule(), ROWS, torch.full_like(USERS, 4), USERS, Columns.whole(11), RandomStream.of(1))
    assert bool(hidden_from_hidden_noise(denoiser(scale=torch.nan), noisy).isnan().all())
    zeros = denoiser(scale=0.0)  # the covariance is zero, which has no factor either
    assert bool(hidden_from_hidden_noise(zeros, noisy).isnan().any())


def test_hidden_noise_has_the_gradient_of_noise_on_the_items():
    """Without dropout the expected loss is the same function of the weights, so its gradient is the same."""
    num_users = 60_000
    users, t = torch.arange(num_users), torch.full((num_users,), 4)
    rows = CSR(torch.arange(num_users + 1), torch.arange(num_users) % 6, 6)
    gradients = []
    for function in (hidden_from_hidden_noise, lambda m, noisy: m.hidden(project(noisy, m.input_weight), noisy.t)):
        model = Denoiser(Columns.whole(6), (2,), time_embedding_dim=4)
        model.initialize(RandomStream.of(3))
        with torch.no_grad():
            model.input_weight.mul_(20)  # so that the noise matters: its deviation is 0.05
        noisy = NoisyRows(schedule(), rows, t, users, model.columns, RandomStream.of(1))
        function(model, noisy).square().sum(dim=1).mean().backward()
        gradients.append(model.input_weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0.03 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("hidden_dims", [(8,), (8, 5)])
@pytest.mark.parametrize("num_timesteps", [1, 5])
@pytest.mark.parametrize("options", [{}, {"sampling_steps": 1}, {"sampling_noise": True}, {"normalize_input": True},
                                     {"normalize_input": True, "sampling_steps": 1}])  # fmt: skip
def test_reverse_chain_equals_step_by_step(hidden_dims, num_timesteps, options, monkeypatch):
    options = dict(options)
    table = schedule(num_timesteps)
    model = denoiser(hidden_dims, 4.0, normalize_input=options.pop("normalize_input", False))
    stream = RandomStream.of(8)
    chain = ReverseChain(table, model, **options)
    monkeypatch.setattr(gaussian, "BLOCK_ELEMENTS", 24)  # four items per block
    blocks = list(chain.denoise(ROWS, USERS, stream))
    assert [start for start, _ in blocks] == ([0] if options.get("sampling_noise") else [0, 4, 8])
    x = reference.dense(ROWS)
    if options.get("sampling_steps"):
        steps = torch.full_like(USERS, options["sampling_steps"] - 1)
        noisy = NoisyRows(table, ROWS, steps, USERS, Columns.whole(11), stream.child("start"))
        x = noisy.whole
    posterior = None
    if options.get("sampling_noise"):
        posterior = {t: stream.child("posterior", t).normal_rows(USERS, 11) for t in range(num_timesteps)}
    expected = p_sample_loop(partial(dense_predict, model), x, betas_T=table.betas, noise=posterior)
    # Relative to the largest value: processors sum in different orders, and an element near zero is a difference.
    atol = 1e-5 * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(torch.cat([block for _, block in blocks], dim=1), expected, rtol=1e-4, atol=atol)


def test_a_constant_denoiser_gives_its_constant():
    model = denoiser()
    with torch.no_grad():
        model.output_weight.zero_()
        model.output_bias.copy_(torch.arange(11.0))
    ((_, block),) = ReverseChain(schedule(), model).denoise(ROWS, USERS, RandomStream.of(0))
    torch.testing.assert_close(block, torch.arange(11.0).expand(6, -1))


def test_the_reverse_chain_with_rounded_operands():
    results = []
    for precision in ("float32", "bfloat16"):
        with matmul_precision(precision):
            chain = ReverseChain(schedule(), denoiser(scale=4.0))
            results.append(torch.cat([values for _, values in chain.denoise(ROWS, USERS, RandomStream.of(8))], dim=1))
    assert results[1].dtype == torch.float32
    assert 0 < (results[1] - results[0]).norm() < 2e-2 * results[0].norm()
