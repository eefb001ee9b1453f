"""AdaGCL's settings."""

from typing import Annotated, Literal

from pydantic import Field

from diffmm_dist.config.section import Count, NonNegative, Number, Section, rule

Positive = Annotated[Number, Field(gt=0.0)]


class Contrast(Section):
    """Contrast of the two views in a batch."""

    contrastive_weight: NonNegative = 0.1
    """Weight lambda_1 of the contrast between the two views."""
    bottleneck_weight: NonNegative = 0.01
    """Weight of the contrast of both views with themselves before the contrast's step."""
    temperature: Annotated[Number, Field(ge=0.03)] = 0.5
    """Temperature tau; from 0.03 on exp(cos / tau) stays below 4e14, so float32 needs no maximum subtracted."""
    negatives: Literal["batch", "worker"] = "batch"
    """Nodes in the denominator: all of the `batch`, or those of it that the same `worker` owns, which sends nothing."""


class Pruning(Section):
    """The first view generator: a variational graph autoencoder that prunes edges."""

    kl_weight: NonNegative = 0.1
    """Weight of the KL divergence from the standard normal distribution."""


class Gates(Section):
    """The second view generator: hard concrete gates on every edge, one network per layer."""

    gamma: Annotated[Number, Field(lt=0.0)] = -0.45
    """Lower end of the stretched interval: the lower, the more gates are 0."""
    zeta: Annotated[Number, Field(gt=1.0)] = 1.05
    """Upper end of the stretched interval."""
    l0_weight: NonNegative = 1e-4
    """Weight lambda_0 of the expected share of open gates."""
    initial_temperature: Positive = 2.0
    """Temperature beta of the gates in the first epoch."""
    temperature_decay: Annotated[Number, Field(gt=0.0, le=1.0)] = 0.98
    """Factor of the temperature from one epoch to the next."""
    lowest_temperature: Positive = 0.05
    """Where the temperature stays."""
    adam_eps: Positive = 1e-3
    """Epsilon of the gates' Adam."""


@rule("model.mode", "model.num_layers")
def _released_depth(mode: str, num_layers: int) -> str | None:
    if mode != "reference" or num_layers == 2:
        return None
    return f"model.mode=reference has two layers, not model.num_layers={num_layers}; set it to 2, or corrected"


class Settings(Section):
    """AdaGCL: two learned views of the interactions' graph, their contrast, and ranking."""

    rules = (_released_depth,)

    name: Literal["adagcl"] = "adagcl"
    """The model."""
    mode: Literal["corrected", "reference"] = "corrected"
    """`reference` keeps what the released program does where that is a slip (the model's README names each)."""
    embedding_dim: Count = 32
    """Width d of all embeddings."""
    num_layers: Annotated[int, Field(ge=1, le=64)] = 2
    """Propagation layers L, and networks of gates."""
    contrast: Contrast = Contrast()
    """Contrast of the two views."""
    pruning: Pruning = Pruning()
    """The first view generator."""
    gates: Gates = Gates()
    """The second view generator."""
