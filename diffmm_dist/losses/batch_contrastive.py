"""Contrast of two views of the nodes of a batch with one another, users and items together, the positive left out.

Shape suffixes: A own distinct nodes of the batch, C those of all workers, D embedding, b anchors of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.losses.contrastive import TRAFFIC, BatchNodes
from diffmm_dist.parallel.collectives import all_reduce_sum, gather_each
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import add_product_, operand, product
from diffmm_dist.rows import normalize_rows

BLOCK_ELEMENTS = 1 << 19  # similarities at a time: 2 MiB stay in a core's cache
LEAST_ANCHORS = 64


@dataclass(frozen=True, eq=False)
class Repeats:
    """How often each distinct node of a batch's rows stands in them; the rows are its users, then its positive items.

    Attributes:
        counts_A: of own nodes, float32, at least 1.
        counts_C: of all nodes that the own ones are compared with, in the order of workers.
        start: place of the first own node among them.
        worker_counts: how many of them each worker owns.
        num_rows: 2 B, of all workers.
        world: the workers that compare with one another.
    """

    counts_A: Tensor
    counts_C: Tensor
    start: int
    worker_counts: list[int]
    num_rows: int
    world: World

    @classmethod
    def of(
        cls, sides: tuple[BatchNodes, BatchNodes], *, batch_size: int, world: World, alone: bool = False
    ) -> "Repeats":
        """Count the nodes of a batch; every worker calls it at the same time.

        Args:
            sides: the batch's users and its positive items.
            batch_size: B, of all workers.
            world: the workers.
            alone: compare own nodes with own ones only.
        """
        counts_A = (torch.cat([side.weights for side in sides]) * batch_size).round()
        if alone:
            return cls(counts_A, counts_A, 0, [counts_A.numel()], 2 * batch_size, World.single(world.device))
        worker_counts = [sum(both) for both in zip(*(side.worker_counts for side in sides), strict=True)]
        (counts_C,) = gather_each([counts_A], [worker_counts], world, purpose=TRAFFIC)
        return cls(counts_A, counts_C, sum(worker_counts[: world.rank]), worker_counts, 2 * batch_size, world)


def batch_info_nce(anchor_AD: Tensor, target_AD: Tensor, repeats: Repeats, *, temperature: float) -> Tensor:
    """Return this worker's share of the contrast of two views of a batch's nodes; shares sum to the loss.

    The loss is the mean over the batch's 2 B rows r, repeats included, of

        -log( exp(cos(x_r, y_r) / tau) / sum_{rows c != r} exp(cos(x_r, y_c) / tau) )

    (AdaGCL, its released form: the positive does not stand in the denominator, but a repeat of its node does.) A node
    that stands in the batch several times is computed once and counted as often. Time is O(A C D), memory is O(C D) and
    one block of similarities.

    Args:
        anchor_AD: x at the own distinct nodes, float32; users, then items.
        target_AD: y at the same nodes; without gradient where it needs none.
        repeats: how often each stands in the batch.
        temperature: tau; cosines are bounded, so from 0.03 on exp(cos / tau) needs no maximum subtracted.
    """
    anchors, targets = normalize_rows(anchor_AD), normalize_rows(target_AD)
    loss: Tensor = _BatchInfoNCE.apply(anchors, targets, repeats, temperature)  # type: ignore[no-untyped-call, unused-ignore]
    return loss


class _BatchInfoNCE(torch.autograd.Function):
    """Computes the loss and both gradients from the same blocks of similarities; backward only scales them.

    With k_c the count of node c, w_n = k_n / (2 B), e_nc = exp(a_n . y_c / tau) times k_c, or k_n - 1 where c is n, and
    z_n = sum_c e_nc, the loss is sum_n w_n (log z_n - a_n . y_n / tau). Its gradient is w_n / tau (sum_c e_nc y_c / z_n
    - y_n) for a_n, and sum_n w_n / tau a_n (e_nc / z_n - [c = n]) for y_c.
    """

    @staticmethod
    def forward(ctx: Any, anchors_AD: Tensor, targets_AD: Tensor, repeats: Repeats, tau: float) -> Tensor:
        world = repeats.world
        (targets_CD,) = gather_each([targets_AD], [repeats.worker_counts], world, purpose=TRAFFIC)
        weights_A = repeats.counts_A.to(anchors_AD.dtype) / repeats.num_rows
        scaled_AD = anchors_AD / tau
        left_AD, right_CD = operand(scaled_AD), operand(targets_CD)
        sums_A, pulls_AD = torch.empty_like(weights_A), torch.empty_like(anchors_AD)
        target_grad_CD = torch.zeros_like(targets_CD) if ctx.needs_input_grad[1] else None
        for block, exp_bC in _exponentials(left_AD, right_CD, repeats):
            torch.sum(exp_bC, dim=1, out=sums_A[block])
            share_b1 = (weights_A[block] / sums_A[block])[:, None]
            exp_bC = operand(exp_bC)
            product(exp_bC, right_CD, out=pulls_AD[block])
            pulls_AD[block] *= share_b1
            if target_grad_CD is not None:
                add_product_(target_grad_CD, exp_bC.T, operand(scaled_AD[block] * share_b1))
        own = slice(repeats.start, repeats.start + anchors_AD.shape[0])
        positives_AD, weights_A1 = targets_CD[own], weights_A[:, None]
        loss = (weights_A * (sums_A.log() - (scaled_AD * positives_AD).sum(dim=1))).sum()
        target_grad_AD = None
        if target_grad_CD is not None:
            target_grad_AD = all_reduce_sum(target_grad_CD, world, purpose=TRAFFIC)[own]
            target_grad_AD = target_grad_AD - scaled_AD * weights_A1
        ctx.save_for_backward(pulls_AD.sub_(positives_AD * weights_A1).div_(tau), target_grad_AD)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        anchor_grad_AD, target_grad_AD = ctx.saved_tensors
        target_grad = None if target_grad_AD is None else target_grad_AD * gradients[0]
        return anchor_grad_AD * gradients[0], target_grad, None, None


def _exponentials(left_AD: Tensor, right_CD: Tensor, repeats: Repeats) -> Iterator[tuple[slice, Tensor]]:
    """Yield (anchors, e_nc of them, (b, C)), reusing the memory of the latter."""
    num_anchors, num_targets = left_AD.shape[0], right_CD.shape[0]
    step = max(LEAST_ANCHORS, BLOCK_ELEMENTS // max(num_targets, 1))
    dtype = torch.promote_types(left_AD.dtype, torch.float32)
    room = repeats.counts_C.new_empty(min(step, num_anchors), num_targets, dtype=dtype)
    counts_A = repeats.counts_A.to(dtype)
    kept_A = (counts_A - 1) / counts_A
    places = torch.arange(num_anchors, device=left_AD.device)
    for start in range(0, num_anchors, step):
        block = slice(start, min(start + step, num_anchors))
        exp_bC = product(left_AD[block], right_CD.T, out=room[: block.stop - start]).exp_().mul_(repeats.counts_C)
        own = places[block]
        exp_bC[own - start, own + repeats.start] *= kept_A[block]
        yield block, exp_bC
