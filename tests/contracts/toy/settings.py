"""The toy model's settings."""

from typing import Literal

from diffmm_dist.config.section import Count, Section


class Settings(Section):
    """Toy: three stages, which tests train."""

    name: Literal["toy"] = "toy"
    """The model."""
    embedding_dim: Count = 8
    """Width of all embeddings."""
    warm_epochs: Count = 6
    """Epochs of the first stage, at most."""
    refine_epochs: Count | None = None
    """Epochs of the second stage; null takes `train.epochs`."""
