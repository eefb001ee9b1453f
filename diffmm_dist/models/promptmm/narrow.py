"""The embeddings of a given width whose scores come nearest to a teacher's: its best low-rank form, from shards.

Shape suffixes: D the teacher's width, K the student's.
"""

import torch
from torch import Tensor

from diffmm_dist.graph.propagate import Rows
from diffmm_dist.parallel.collectives import all_reduce_sum_, broadcast_rows
from diffmm_dist.parallel.world import World

TRAFFIC = "tokens"
_NEGLIGIBLE = 1e-10  # of the largest eigenvalue: what lies below is rounding


@torch.no_grad()
def narrowing(rows: Rows, *, width: int, world: World) -> tuple[Tensor, Tensor]:
    """Return maps (D, K) of users' and items' embeddings H_u, H_i to others of width K.

    With H_u = Q_u R_u, H_i = Q_i R_i and the singular values of R_u R_i^T = P S V^T, the scores H_u H_i^T have the best
    approximation of rank K in (Q_u P_K S_K^1/2) (Q_i V_K S_K^1/2)^T (Eckart and Young, 1936). R is the root of the
    D x D Gram matrix H^T H, which the workers add up, so Q is never formed. Every worker calls it at the same time.

    Args:
        rows: of own users and own items, (rows, D) each.
        width: K, less than D.
        world: the workers.
    """
    dim, dtype = rows[0].shape[1], rows[0].dtype
    grams = [all_reduce_sum_(_gram(side), world, purpose=TRAFFIC) for side in rows]
    maps = torch.zeros(2, dim, width, dtype=torch.float64, device=rows[0].device)
    if world.is_first:
        (root_u, inverse_u), (root_i, inverse_i) = (_roots(gram) for gram in grams)
        left, values, right = torch.linalg.svd(root_u @ root_i)
        scale = values[:width].sqrt()
        maps = torch.stack([inverse_u @ left[:, :width] * scale, inverse_i @ right[:width].T * scale])
    users, items = broadcast_rows(maps, 0, 2, world, purpose=TRAFFIC).to(dtype)
    return users, items


def item_map(rows: Rows, *, width: int, world: World) -> Tensor:
    """Return the map (D, K) of items' embeddings to any width; columns beyond D are zeros."""
    dim = rows[1].shape[1]
    if width >= dim:
        return torch.eye(dim, width, dtype=rows[1].dtype, device=rows[1].device)
    return narrowing(rows, width=width, world=world)[1]


def narrowed(rows: Rows, maps: tuple[Tensor, Tensor]) -> Rows:
    """Return the embeddings of users and items (rows, K) under the maps of ``narrowing``."""
    return rows[0] @ maps[0], rows[1] @ maps[1]


def _gram(rows: Tensor) -> Tensor:
    double = rows.double()
    return double.T @ double


def _roots(gram_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric root of a Gram matrix, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(gram_DD)
    kept = values > _NEGLIGIBLE * values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    root = torch.where(kept, values.clamp(min=0), 0).sqrt()
    inverse = torch.where(kept, root, 1).reciprocal() * kept
    return vectors * root @ vectors.T, vectors * inverse @ vectors.T
