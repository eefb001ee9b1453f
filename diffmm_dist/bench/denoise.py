"""One denoising step of one denoiser, and its output side alone.

Symbols: B users of the batch, I items, h hidden, d embedding. FLOP: the products over the items
(models/common/work.py), and of the Gram ways also those of the batch, 4 B h^2 and 6 B h d, and the Cholesky factor with
its gradient, h^3. Bytes: each of the two tables of weights once in the forward pass, the last one again backward, and
their gradients; x_t written and read by two products; the residual written, read by two, turned into its gradient, and
that read by two.

The plain twin multiplies the rows with E too, and writes and reads twelve arrays of B x I: clean rows, noise, both
scaled, x_t, with dropout, with the time embedding, the prediction, its difference and square, and the gradients of the
last two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from diffmm_dist.bench.denoisers import PUBLISHED, new_denoiser, new_schedule
from diffmm_dist.bench.operations import FLOAT, Case, Operation, Variant
from diffmm_dist.bench.plain import PlainDenoiser, denoising_step, is_affordable
from diffmm_dist.bench.problems import STREAM, normal_rows, random_rows
from diffmm_dist.diffusion.gaussian import training_losses
from diffmm_dist.diffusion.noise import NoisyRows
from diffmm_dist.diffusion.output import Products, error_and_signal, gram_pays
from diffmm_dist.models.common.work import input_flop, output_flop, product_flop


@dataclass(frozen=True)
class DenoiseSize:
    """B, I, h, d, and the observed items of each user."""

    batch: int
    items: int
    hidden: int
    dim: int = 64
    per_user: int = 6


PRESETS = {
    "tiktok": DenoiseSize(batch=1024, items=6710, hidden=1000),
    "large": DenoiseSize(batch=8192, items=50_000, hidden=500),
}


class Problem:
    """A denoiser with published settings and a random batch."""

    def __init__(self, size: DenoiseSize, device: torch.device) -> None:
        self.denoiser = new_denoiser(size.items, size.hidden, device)
        users = torch.arange(size.batch, device=device)
        self.noisy = NoisyRows(
            new_schedule(),
            random_rows(size.batch, size.items, size.per_user, device),
            STREAM.child("t").integers(users, PUBLISHED.num_timesteps),
            users,
            self.denoiser.columns,
            noise=STREAM.child("noise"),
            keep_prob=1 - PUBLISHED.input_dropout_prob,
        )
        self.modal_items_CD = normal_rows("modal items", size.items, size.dim, device)
        self.item_table_CD = normal_rows("item table", size.items, size.dim, device)
        self.hidden_BH = normal_rows("hidden", size.batch, size.hidden, device).tanh_().requires_grad_()

    def step(self, products: Products, noise: Literal["exact", "hidden"]) -> None:
        """Compute the loss and all gradients."""
        self.denoiser.zero_grad(set_to_none=True)
        losses = training_losses(
            self.denoiser,
            replace(self.noisy),  # draws anew
            table_CD=self.modal_items_CD,
            target_BD=self.noisy.rows.matmul(self.item_table_CD),
            products=products,
            noise=noise,
        )
        (losses.elbo.mean() + PUBLISHED.signal_weight * losses.signal.mean()).backward()

    def plain_step(self, twin: PlainDenoiser) -> None:
        """Compute the same with a plain twin: its rows made dense and its noise drawn, as before every step."""
        rows_BI = self.noisy.rows.dense()
        tables = self.modal_items_CD, self.item_table_CD
        noise_BI = torch.randn_like(rows_BI)
        denoising_step(
            twin, None, self.noisy.schedule, rows_BI, self.noisy.t, noise_BI, *tables, PUBLISHED.signal_weight
        )

    def output_side(self, products: Products) -> tuple[Tensor, ...]:
        """Return the gradients of the hidden layer, W_o and b_o."""
        error_B, signal_BD = error_and_signal(
            self.denoiser, self.hidden_BH, self.noisy.rows, self.modal_items_CD, products=products
        )
        loss = error_B.mean() + PUBLISHED.signal_weight * signal_BD.square().mean()
        wanted = (self.hidden_BH, self.denoiser.output_weight, self.denoiser.output_bias)
        return torch.autograd.grad(loss, wanted)


def operations(size: DenoiseSize, device: torch.device) -> Iterator[Operation]:
    """Yield the step and its output side."""
    problem = Problem(size, device)
    auto = gram_pays(size.batch, size.items, size.hidden)
    steps: dict[str, tuple[Products, bool, Literal["exact", "hidden"]]] = {
        "ours": ("auto", auto, "exact"),
        "products=direct": ("direct", False, "exact"),
        "products=gram": ("gram", True, "exact"),
    }
    if size.items >= size.hidden:  # as the model demands of it
        steps["noise=hidden"] = ("auto", auto, "hidden")
    variants = {
        name: Variant(
            partial(problem.step, products, noise),
            _input_flop(size, noise == "hidden") + _output_flop(size, gram),
            _input_bytes(size, noise == "hidden") + _output_bytes(size, gram),
        )
        for name, (products, gram, noise) in steps.items()
    }
    yield Operation("denoising step", variants | _plain(problem, size, device))
    ways: dict[str, tuple[Products, bool]] = {"gram": ("gram", True), "direct": ("direct", False)}
    yield Operation(
        "output side",
        {
            name: Variant(partial(problem.output_side, products), _output_flop(size, gram), _output_bytes(size, gram))
            for name, (products, gram) in ways.items()
        },
    )


def _plain(problem: Problem, size: DenoiseSize, device: torch.device) -> dict[str, Variant]:
    if not is_affordable(device, num_values=size.batch * size.items):
        return {}
    twin = PlainDenoiser.copied(problem.denoiser, dropout=PUBLISHED.input_dropout_prob)
    flop = _input_flop(size, False) + _output_flop(size, False) + product_flop(size.batch, size.items, size.dim)
    num_bytes = FLOAT * (24 * size.batch * size.items + 5 * size.items * size.hidden)
    return {"plain": Variant(partial(problem.plain_step, twin), flop, num_bytes)}


def _input_flop(size: DenoiseSize, hidden_noise: bool) -> float:
    of_items = input_flop(size.batch, size.items, size.hidden, hidden_noise=hidden_noise)
    return of_items + (4 * size.batch * size.hidden**2 + size.hidden**3 if hidden_noise else 0)


def _output_flop(size: DenoiseSize, gram: bool) -> float:
    of_items = output_flop(size.batch, size.items, size.hidden, size.dim, gram=gram)
    return of_items + (size.batch * size.hidden * (4 * size.hidden + 6 * size.dim) if gram else 0)


def _input_bytes(size: DenoiseSize, hidden_noise: bool) -> float:
    noisy = 0 if hidden_noise else 3 * size.batch * size.items
    weights = (3 if hidden_noise else 2) * size.items * size.hidden
    return FLOAT * (noisy + weights)


def _output_bytes(size: DenoiseSize, gram: bool) -> float:
    residual = 0 if gram else 6 * size.batch * size.items
    return FLOAT * (residual + 3 * size.items * size.hidden + 2 * size.items * size.dim)


CASE = Case("denoise", PRESETS, operations)
