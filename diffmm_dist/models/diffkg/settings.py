"""DiffKG's settings; the published flag that each one replaces stands in README.md beside this file."""

from typing import Annotated, Literal

from pydantic import Field

from diffmm_dist.config.section import Count, NonNegative, Number, Section
from diffmm_dist.models.common.diffusion_settings import RULES, Denoiser
from diffmm_dist.models.common.diffusion_settings import Diffusion as CommonDiffusion


class Knowledge(Section):
    """The knowledge graph and the attention over it."""

    num_hops: Annotated[int, Field(ge=1, le=16)] = 1
    """Hops H of attention."""
    residual_weight: NonNegative = 0.5
    """Factor of what earlier hops have given, at each hop; 0 leaves the last one alone."""
    max_facts: Count | None = 10
    """Facts of each head that the sampled graph keeps, drawn once per run; null keeps all."""
    message_dropout_prob: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout on the result of each hop in training."""


class Diffusion(CommonDiffusion):
    """Diffusion over the rows of the knowledge graph, and the graph generated from it."""

    normalize_input: bool = True
    """L2-normalise each row before the denoiser's first layer."""
    signal_weight: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.5
    """Weight lambda_0 of the collaborative signal (CKGC); the squared error has 1 - lambda_0."""
    loss_weights: Literal["snr", "uniform"] = "snr"
    """Weights of the timesteps in the squared error: differences of SNR, as published, or 1."""
    rows: Literal["entities", "items"] = "entities"
    """What is denoised: the rows of all `entities`, items among them, or those of `items` alone."""
    candidates: Literal["all", "neighbors"] = "all"
    """Columns to choose from: `all`, of which those that are no facts are dropped, or a row's own `neighbors`."""
    min_confidence: Number | None = None
    """Lowest denoised value of a chosen column; null for any."""


class Views(Section):
    """What is propagated over: the sampled knowledge graph, and the generated one."""

    main: Literal["generated", "original"] = "generated"
    """The view that ranks; the other one is the auxiliary view of the contrast."""
    evaluated: Literal["main", "generated", "original"] = "main"
    """The view that is evaluated and exported."""
    with_original: bool = False
    """Add the facts of the sampled graph to the generated one."""


class Contrast(Section):
    """Contrast of the auxiliary view with the main one."""

    contrastive_weight: NonNegative = 0.1
    """Weight of the contrastive loss."""
    temperature: Annotated[Number, Field(ge=0.03)] = 0.1
    """Temperature tau; from 0.03 on exp(cos / tau) stays below 4e14, so float32 needs no maximum subtracted."""
    negatives: Literal["all", "batch"] = "all"
    """Nodes in the denominator: `all`, or those of the `batch` where comparing with all of them costs too much."""
    max_nodes: Count | None = None
    """Users, and as many items, of a batch to contrast, drawn at random, for very large batches; null contrasts all."""


class Settings(Section):
    """DiffKG: a knowledge graph denoised, relational attention over it, propagation, ranking and contrast."""

    rules = RULES

    name: Literal["diffkg"] = "diffkg"
    """The model."""
    mode: Literal["corrected", "released"] = "corrected"
    """`released` trains on the sampled graph alone, as the released program does (the model's README says more)."""
    embedding_dim: Count = 64
    """Width d of all embeddings."""
    num_layers: Annotated[int, Field(ge=0, le=64)] = 2
    """Propagation layers L over the interactions."""
    knowledge: Knowledge = Knowledge()
    """The knowledge graph."""
    views: Views = Views()
    """The two views."""
    diffusion: Diffusion = Diffusion()
    """Diffusion over the knowledge graph."""
    denoiser: Denoiser = Denoiser()
    """How the denoiser is computed."""
    contrast: Contrast = Contrast()
    """Contrast of the views."""
