"""DiffMM's settings; the published flag that each one replaces stands in README.md beside this file."""

from typing import Annotated, Literal

from pydantic import Field

from diffmm_dist.config.section import Count, NonNegative, Number, Positive, Probability, Section, rule

Projection = Literal["matrix", "affine"]


class Diffusion(Section):
    """Diffusion over interaction rows and the graphs generated from it."""

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
    """Weight lambda_0 of the modality signal (MSI) in the denoising loss."""
    rebuild_topk: Count = 1
    """Generated edges k per user and modality; clipped to the items."""
    edge_keep_prob: Probability = 0.5
    """Probability of keeping each entry of a generated graph, drawn once per epoch; 1 keeps all."""


class Denoiser(Section):
    """How the denoisers are computed; what they learn is set under `diffusion`."""

    sharding: Literal["auto", "replicated", "items"] = "auto"
    """Every worker has them whole (`replicated`), or a range of their `items`; `auto` takes what sends the least."""
    products: Literal["auto", "direct", "gram"] = "auto"
    """Loss of the output layer from the output itself or through the `gram` matrix of its weights; same numbers."""
    noise: Literal["exact", "hidden"] = "exact"
    """Noise drawn on the items, or in the first `hidden` layer, cheap for large catalogues (docs/numerics.md)."""


class Contrast(Section):
    """Cross-modal contrast."""

    contrastive_weight: NonNegative = 1e-2
    """Weight of the contrastive loss."""
    temperature: Annotated[Number, Field(ge=0.03)] = 0.5
    """Temperature tau; from 0.03 on exp(cos / tau) stays below 4e14, so float32 needs no maximum subtracted."""
    contrastive_anchor: Literal["main", "modal"] = "modal"
    """Anchors: the `main` view against every modality, or each `modal` view against the later ones."""
    negatives: Literal["all", "batch"] = "all"
    """Nodes in the denominator: `all`, or those of the `batch` where comparing with all of them costs too much."""
    max_nodes: Count | None = None
    """Users, and as many items, of a batch to contrast, drawn at random, for very large batches; null contrasts all."""


@rule("model.diffusion.noise_min", "model.diffusion.noise_max")
def _noise_rises(low: float, high: float) -> str | None:
    return (
        f"model.diffusion.noise_min {low} is above model.diffusion.noise_max {high}; swap them" if low > high else None
    )


@rule("model.diffusion.noise_scale", "model.diffusion.noise_max")
def _variances_stay_below_one(scale: float, high: float) -> str | None:
    if scale * high < 1:
        return None
    return "model.diffusion.noise_scale * model.diffusion.noise_max must stay below 1; lower one of them"


@rule("model.diffusion.sampling_steps", "model.diffusion.num_timesteps")
def _steps_fit_the_schedule(steps: int, num_timesteps: int) -> str | None:
    if steps <= num_timesteps:
        return None
    return f"model.diffusion.sampling_steps {steps} exceeds model.diffusion.num_timesteps {num_timesteps}; lower it"


@rule("model.denoiser.noise", "model.diffusion.normalize_input")
def _hidden_noise_has_nothing_to_normalize(noise: str, normalize_input: bool) -> str | None:
    if noise != "hidden" or not normalize_input:
        return None
    return (
        "model.denoiser.noise=hidden cannot be had with model.diffusion.normalize_input=true, which needs the noisy "
        "row itself; set one of them back"
    )


class Settings(Section):
    """DiffMM: interaction rows denoised for each modality, propagation, ranking and cross-modal contrast."""

    rules = (_noise_rises, _variances_stay_below_one, _steps_fit_the_schedule, _hidden_noise_has_nothing_to_normalize)

    name: Literal["diffmm"] = "diffmm"
    """The model."""
    embedding_dim: Count = 64
    """Width d of all embeddings."""
    num_layers: Annotated[int, Field(ge=0, le=64)] = 1
    """Propagation layers L over the real graph."""
    modality_projection: Projection | dict[str, Projection] = "matrix"
    """Features to embeddings: `matrix` (no bias, LeakyReLU 0.2) or `affine`, or a map from modality to one of them."""
    residual_weight: NonNegative = 0.5
    """Weight omega of the row-normalised first layer in the final embedding."""
    modal_graph_weight: NonNegative = 0.2
    """Weight lambda_adj of the generated graphs in the first layer."""
    diffusion: Diffusion = Diffusion()
    """Diffusion over interaction rows."""
    denoiser: Denoiser = Denoiser()
    """How the denoisers are computed."""
    contrast: Contrast = Contrast()
    """Cross-modal contrast."""
