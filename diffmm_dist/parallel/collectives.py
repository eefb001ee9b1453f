"""Sums and agreements over all workers; each is the identity in a world of one."""

import torch
import torch.distributed as dist
from torch import Tensor

from diffmm_dist.parallel.world import World


def all_reduce_sum(tensor: Tensor, world: World) -> Tensor:
    """Return the elementwise sum of every worker's tensor; the input is left as it is."""
    if world.size == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def any_worker(flag: bool, world: World) -> bool:
    """Return whether any worker says yes, the same answer on all."""
    if world.size == 1:
        return flag
    votes = torch.tensor(int(flag), device=world.device)
    return bool(all_reduce_sum(votes, world).item())
