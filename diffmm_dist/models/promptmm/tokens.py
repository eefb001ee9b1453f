"""Prompt tokens: the principal components of each modality's features, exactly, from shards and in bounded memory.

Shape suffixes: I own items, N items of all workers, F feature width, D components, b items of a block.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffmm_dist.host_rows import Table, blocks_of
from diffmm_dist.parallel.collectives import all_reduce_sum_, broadcast_rows
from diffmm_dist.parallel.world import World

TRAFFIC = "tokens"


@torch.no_grad()
def principal_components(features_IF: Table, *, num_components: int, num_items: int, world: World) -> Tensor:
    """Return the coordinates of own items on the principal axes of all items' features, centred, not whitened: (I, D).

    The axes are the leading eigenvectors of the covariance, F x F, which is summed over blocks of items and over the
    workers in float64; the largest entry of each axis is positive. Where the features have
    fewer columns than D, the rest is zeros. Every worker calls it at the same time.

    Args:
        features_IF: of own items.
        num_components: D.
        num_items: N.
        world: the workers.
    """
    width = features_IF.shape[1]
    mean_F = torch.zeros(width, dtype=torch.float64, device=world.device)
    for block_bF in _blocks(features_IF):
        mean_F += block_bF.sum(dim=0)
    mean_F = all_reduce_sum_(mean_F, world, purpose=TRAFFIC) / max(num_items, 1)
    covariance_FF = mean_F.new_zeros(width, width)
    for block_bF in _blocks(features_IF):
        centred_bF = block_bF - mean_F
        covariance_FF.addmm_(centred_bF.T, centred_bF)
    axes_FD = _axes(all_reduce_sum_(covariance_FF, world, purpose=TRAFFIC), num_components, world)
    components = [((block_bF - mean_F) @ axes_FD).to(features_IF.dtype) for block_bF in _blocks(features_IF)]
    return torch.cat([mean_F.new_zeros(0, num_components, dtype=features_IF.dtype), *components])


def _blocks(features_IF: Table) -> Iterator[Tensor]:
    """Yield blocks in float64."""
    return (block_bF.double() for block_bF in blocks_of(features_IF))


def _axes(covariance_FF: Tensor, num_components: int, world: World) -> Tensor:
    """Return the axes (F, D), those of the first worker on all: another processor might round them otherwise."""
    width = covariance_FF.shape[0]
    axes_FD = covariance_FF.new_zeros(width, num_components)
    count = min(num_components, width)
    if world.is_first:
        leading = torch.linalg.eigh(covariance_FF).eigenvectors.flip(1)[:, :count]
        largest = leading.gather(0, leading.abs().argmax(dim=0, keepdim=True))
        axes_FD[:, :count] = torch.where(largest < 0, -leading, leading)
    return broadcast_rows(axes_FD, 0, width, world, purpose=TRAFFIC)
