"""Settings that models with denoisers share.

Rows are users and columns items, or both are the entities of a knowledge graph.
"""

from typing import Annotated, Literal

from pydantic import Field

from diffmm_dist.config.section import Count, NonNegative, Number, Positive, Probability, Section, rule


class Diffusion(Section):
    """Diffusion over the rows of a matrix and the graphs generated from it."""

    num_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 5
    """Diffusion steps T."""
    noise_scale: Positive = 0.1
    """Factor on both ends of the variance schedule."""
    noise_min: Positive = 1e-4
    """Lower end of the variance schedule."""
    noise_max: Positive = 0.02
    """Upper end of the variance schedule."""
    sampling_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Corruption steps before the reverse chain; 0 starts from the clean row."""
    sampling_noise: bool = False
    """Add posterior noise in the reverse chain."""
    denoiser_hidden_dims: Annotated[tuple[Count, ...], Field(min_length=1)] = (1000,)
    """Widths of the denoiser's hidden layers."""
    time_embedding_dim: Annotated[int, Field(ge=2, le=65_536)] = 10
    """Width of the sinusoidal time embedding."""
    input_dropout_prob: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.5
    """Dropout on the noisy row while the denoiser trains."""
    normalize_input: bool = False
    """L2-normalise each row before the denoiser's first layer."""
    signal_weight: NonNegative = 0.1
    """Weight lambda_0 of the signal in the denoising loss."""
    rebuild_topk: Count = 1
    """Generated edges k per row; clipped to the columns."""
    edge_keep_prob: Probability = 0.5
    """Probability of keeping each entry of a generated graph, drawn once per epoch; 1 keeps all."""


class Denoiser(Section):
    """How the denoisers are computed; what they learn is set under `diffusion`."""

    sharding: Literal["auto", "replicated", "items"] = "auto"
    """Every worker has them whole (`replicated`), or a range of columns (`items`); `auto` takes what sends least."""
    products: Literal["auto", "direct", "gram"] = "auto"
    """Loss of the output layer from the output itself or through the `gram` matrix of its weights; same numbers."""
    noise: Literal["exact", "hidden"] = "exact"
    """Noise drawn on the columns, or in the first `hidden` layer, cheap for large catalogues (docs/numerics.md)."""


@rule("model.diffusion.noise_min", "model.diffusion.noise_max")
def noise_rises(low: float, high: float) -> str | None:
    """The lower end of the variance schedule is not above the upper one."""
    return (
        f"model.diffusion.noise_min {low} is above model.diffusion.noise_max {high}; swap them" if low > high else None
    )


@rule("model.diffusion.noise_scale", "model.diffusion.noise_max")
def variances_stay_below_one(scale: float, high: float) -> str | None:
    """Variances are below 1."""
    if scale * high < 1:
        return None
    return "model.diffusion.noise_scale * model.diffusion.noise_max must stay below 1; lower one of them"


@rule("model.diffusion.sampling_steps", "model.diffusion.num_timesteps")
def steps_fit_the_schedule(steps: int, num_timesteps: int) -> str | None:
    """There are timesteps enough to corrupt rows to."""
    if steps <= num_timesteps:
        return None
    return f"model.diffusion.sampling_steps {steps} exceeds model.diffusion.num_timesteps {num_timesteps}; lower it"


@rule("model.denoiser.noise", "model.diffusion.normalize_input")
def hidden_noise_has_nothing_to_normalize(noise: str, normalize_input: bool) -> str | None:
    """Rows that are normalised exist."""
    if noise != "hidden" or not normalize_input:
        return None
    return (
        "model.denoiser.noise=hidden cannot be had with model.diffusion.normalize_input=true, which needs the noisy "
        "row itself; set one of them back"
    )


RULES = (noise_rises, variances_stay_below_one, steps_fit_the_schedule, hidden_noise_has_nothing_to_normalize)
