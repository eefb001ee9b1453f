"""LightGCN's settings."""

from typing import Annotated, Literal

from pydantic import Field

from diffmm_dist.config.section import Count, Section


class Settings(Section):
    """LightGCN: propagation over the real graph, and ranking."""

    name: Literal["lightgcn"] = "lightgcn"
    """The model."""
    embedding_dim: Count = 64
    """Width d of all embeddings."""
    num_layers: Annotated[int, Field(ge=0, le=64)] = 1
    """Propagation layers L over the real graph."""
