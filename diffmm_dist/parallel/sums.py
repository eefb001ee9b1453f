"""Sums over workers inside a computation that is differentiated.

A value that every worker of a group computes alike is *shared*, one of which each has a summand is *partial*. The two
functions go from one to the other, and each is the other's backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.world import World


def summed(partial: Tensor, world: World, *, purpose: str) -> Tensor:
    """Return the shared sum of partial values; its gradient, the same on all workers, is that of every summand."""
    if world.size == 1:
        return partial
    shared: Tensor = _Summed.apply(partial, world, purpose)  # type: ignore[no-untyped-call, unused-ignore]
    return shared


def split(shared: Tensor, world: World, *, purpose: str) -> Tensor:
    """Return a shared value to be used for partial ones; its gradient is the sum of what they give on each worker."""
    if world.size == 1:
        return shared
    used: Tensor = _Split.apply(shared, world, purpose)  # type: ignore[no-untyped-call, unused-ignore]
    return used


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, world: World, purpose: str) -> Tensor:
        return all_reduce_sum(partial.contiguous(), world, purpose=purpose)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shared: Tensor, world: World, purpose: str) -> Tensor:
        ctx.world, ctx.purpose = world, purpose
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return all_reduce_sum(gradients[0].contiguous(), ctx.world, purpose=ctx.purpose), None, None
