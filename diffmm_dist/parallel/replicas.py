"""Modules that every worker holds whole: their gradients are the sums of all workers'."""

from collections.abc import Sequence

import torch
from torch import nn

from diffmm_dist.parallel.collectives import all_reduce_sum_
from diffmm_dist.parallel.world import World


def sum_gradients(parameters: Sequence[nn.Parameter], world: World, *, purpose: str) -> None:
    """Replace the gradients of replicated parameters by their sums over the workers, all in one message.

    Losses are divided by global counts, so gradients are summed and not averaged. A parameter that a worker's share of
    the batch did not reach has no gradient there; it counts as zeros.
    """
    if world.size == 1 or not parameters:
        return
    flat = torch.cat([torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters])
    all_reduce_sum_(flat, world, purpose=purpose)
    for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = summed.view_as(parameter)
