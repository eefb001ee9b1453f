"""DiffMM's settings; the published flag that each one replaces stands in README.md beside this file."""

from typing import Annotated, Literal

from pydantic import Field

from diffmm_dist.config.section import Count, NonNegative, Number, Section
from diffmm_dist.models.common.diffusion_settings import RULES, Denoiser, Diffusion

Projection = Literal["matrix", "affine"]


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


class Settings(Section):
    """DiffMM: interaction rows denoised for each modality, propagation, ranking and cross-modal contrast."""

    rules = RULES

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
