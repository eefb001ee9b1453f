"""Modality features to embeddings.

Shape suffixes: I items, F feature width, D embedding.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from diffmm_dist.errors import UserError
from diffmm_dist.host_rows import Table, product
from diffmm_dist.models.common.initialization import fill_uniform, xavier_table
from diffmm_dist.parallel.random import RandomStream

_NEGATIVE_SLOPE = 0.2


class MatrixProjection(nn.Module):
    """LeakyReLU_0.2(F W): no bias, Xavier-uniform."""

    def __init__(self, width: int, embedding_dim: int, stream: RandomStream) -> None:
        super().__init__()
        self.weight = xavier_table(width, embedding_dim, stream)

    def forward(self, features_IF: Table) -> Tensor:
        """Return (I, D)."""
        return F.leaky_relu(product(features_IF, self.weight), _NEGATIVE_SLOPE)


class AffineProjection(nn.Linear):
    """F W^T + b: no activation, weights and bias uniform within 1 / sqrt(width)."""

    def __init__(self, width: int, embedding_dim: int, stream: RandomStream) -> None:
        super().__init__(width, embedding_dim)
        bound = 1 / math.sqrt(width)
        fill_uniform(self.weight, bound, stream.child("weight"))
        fill_uniform(self.bias, bound, stream.child("bias"))

    def forward(self, features_IF: Table) -> Tensor:
        """Return (I, D)."""
        if isinstance(features_IF, Tensor):
            return super().forward(features_IF)
        return product(features_IF, self.weight.T) + self.bias


PROJECTIONS: dict[str, type[MatrixProjection] | type[AffineProjection]] = {
    "matrix": MatrixProjection,
    "affine": AffineProjection,
}


def check_modalities(names: Sequence[str], *, model: str) -> None:
    """Refuse data without modalities, and names that cannot be those of modules.

    Raises:
        UserError: saying which.
    """
    if not names:
        raise UserError(f"model.name={model} needs at least one modality; add item features or use model.name=lightgcn")
    if reserved := [name for name in names if hasattr(nn.ModuleDict, name)]:
        raise UserError(f"a modality cannot be called '{reserved[0]}' here; prepare the dataset with another name")
