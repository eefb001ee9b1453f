"""Contrast of two views of the same nodes, the denominator over all nodes.

Shape suffixes: B batch, A distinct anchors of the batch, N own nodes, D embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.parallel.collectives import all_reduce_sum_, gather_rows, worker_counts
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import add_product_, operand, operand_dtype, product
from diffmm_dist.rows import direction_and_norm, gradient_of_rows, normalize_rows

BLOCK_ELEMENTS = 1 << 24  # similarities held at a time: 64 MiB
LEAST_ANCHORS = 64  # compared at a time, however many targets there are
_ANCHOR_STEP = 64  # numbers of anchors that products with rounded operands are made for
TRAFFIC = "contrast"


@dataclass(frozen=True)
class BatchNodes:
    """The distinct nodes of a global batch, as their owners see them.

    Attributes:
        nodes: own nodes that stand in the batch, local numbers, int64 (A,).
        weights: share of the batch that each makes up, float32 (A,); over all workers they sum to 1, or so on average.
        worker_counts: how many such nodes each worker owns.
        most_rows: the most rows that any worker contrasts them with.
    """

    nodes: Tensor
    weights: Tensor
    worker_counts: list[int]
    most_rows: int

    @classmethod
    def counted(cls, counts_N: Tensor, ownership: Ownership, world: World, *, batch_size: int) -> "BatchNodes":
        """Return the nodes of a batch.

        Args:
            counts_N: how often each own node stands in the batch, int64.
            ownership: of these nodes.
            world: the workers.
            batch_size: B, of all workers.
        """
        nodes = torch.nonzero(counts_N).flatten()
        counts = worker_counts(nodes.numel(), world)
        return cls(nodes, counts_N[nodes] / batch_size, counts, max(ownership.sizes))

    def sampled(self, ids: Tensor, *, max_nodes: int, stream: RandomStream, world: World) -> "BatchNodes":
        """Return the same nodes, or a random ``max_nodes`` of them on average, weighted up; all workers call it.

        Each node is kept with the same probability, so the loss over the sample, with the same denominators, has the
        expectation of the loss over all of them.

        Args:
            ids: id of each of ``nodes``, which keys whether it is kept.
            max_nodes: how many, of all workers.
            stream: random stream of this batch.
            world: the workers.
        """
        share = max_nodes / max(sum(self.worker_counts), 1)
        if share >= 1:
            return self
        kept = stream.uniform(ids) < share
        nodes = self.nodes[kept]
        return BatchNodes(nodes, self.weights[kept] / share, worker_counts(nodes.numel(), world), self.most_rows)

    def among_themselves(self) -> "BatchNodes":
        """Return the same nodes, numbered among the batch's nodes alone."""
        nodes = torch.arange(self.nodes.numel(), device=self.nodes.device)
        return BatchNodes(nodes, self.weights, self.worker_counts, max(self.worker_counts))


def info_nce(
    anchor_ND: Tensor,
    targets: Sequence[Tensor],
    batch: BatchNodes,
    *,
    temperature: float,
    world: World,
    in_batch: bool = False,
) -> Tensor:
    """Return this worker's share of the contrast of a view with others at the batch's nodes; shares sum to the loss.

    The loss is the sum over the other views y of the mean over the batch's nodes n, repeats included, of

        -log( exp(cos(x_n, y_n) / tau) / sum_{all j} exp(cos(x_n, y_j) / tau) )

    with x from ``anchor_ND`` and y from one of ``targets`` (models/diffmm/README.md, "recommend").

    A node that stands in the batch several times is computed once and counted as often. The anchors go to every
    worker, and each compares them with its own rows. Time is O(A N D); memory is O(N D) and one block of similarities.

    Args:
        anchor_ND: view that the anchors are taken from, own rows, float32.
        targets: views that it is contrasted with, own rows (N, D) of each.
        batch: the nodes of the batch.
        temperature: tau, at least 0.03: cosines are bounded, so exp(cos / tau) needs no maximum subtracted there.
        world: the workers.
        in_batch: sum the denominator over the batch's nodes instead of all, for graphs where all are too many.
    """
    anchors_AD = normalize_rows(anchor_ND.index_select(0, batch.nodes))
    if in_batch:
        targets = [target_ND.index_select(0, batch.nodes) for target_ND in targets]
        batch = batch.among_themselves()
    loss: Tensor = _InfoNCE.apply(anchors_AD, batch, temperature, world, *targets)  # type: ignore[no-untyped-call, unused-ignore]
    return loss


class _InfoNCE(torch.autograd.Function):
    """Computes the loss and, from the same block of similarities, all gradients; backward only scales them.

    With e_nj = exp(a_n . y_j / tau) and z_n = sum_j e_nj, the gradient of sum_n w_n (log z_n - a_n . y_n / tau) is
    w_n / tau (sum_j e_nj y_j / z_n - y_n) for a_n, and sum_n w_n / tau a_n (e_nj / z_n - [j = n]) for y_j, from which
    follows that of the target before it was normalised. Sums over j are over all workers' rows; the one over n needs
    all anchors, which every worker has. Anchors and their gradients are sent once for all targets, and the targets'
    sums together. G: anchors of all workers; K: targets.
    """

    @staticmethod
    def forward(ctx: Any, anchors_AD: Tensor, batch: BatchNodes, tau: float, world: World, *targets: Tensor) -> Tensor:
        counts = batch.worker_counts
        own = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
        sent = torch.cat([anchors_AD / tau, batch.weights[:, None].to(anchors_AD.dtype)], dim=1)
        gathered = _padded(gather_rows(sent, counts, world, purpose=TRAFFIC))
        scaled_GD, weights_G1 = gathered[:, :-1].contiguous(), gathered[:, -1:]
        left_GD, views = operand(scaled_GD), [_Target(target) for target in targets]
        logs_GK = scaled_GD.new_empty(scaled_GD.shape[0], len(views))
        anchor_grad_GD = torch.zeros_like(scaled_GD)
        step = anchors_at_a_time(batch.most_rows, len(views))
        for start in range(0, max(left_GD.shape[0], 1), step):  # a block even without anchors: it sets the gradients
            block = slice(start, start + step)
            exponentials = [_Exponentials(left_GD[block], view.operand_ND) for view in views]
            sums_and_pulls = [each.sums_and_pulls(scaled_GD.dtype) for each in exponentials]
            sums_bK = all_reduce_sum_(torch.cat([sums for sums, _ in sums_and_pulls], dim=1), world, purpose=TRAFFIC)
            logs_GK[block] = sums_bK.log()
            shares = (weights_G1[block] / sums_bK).split(1, dim=1)
            for view, each, (_, pulls_bD), share_b1 in zip(views, exponentials, sums_and_pulls, shares, strict=True):
                anchor_grad_GD[block].addcmul_(pulls_bD, share_b1)
                view.add_gradient(each, operand(scaled_GD[block] * share_b1), is_first=start == 0)
        anchor_grad_AD = all_reduce_sum_(anchor_grad_GD, world, purpose=TRAFFIC)[own]
        losses_A = logs_GK[own].sum(dim=1)
        weights_A1 = batch.weights[:, None]
        for view in views:
            positives_AD = view.rows_ND.index_select(0, batch.nodes)
            losses_A -= (scaled_GD[own] * positives_AD).sum(dim=1)
            anchor_grad_AD.sub_(positives_AD * weights_A1)
            view.grad_ND.index_add_(0, batch.nodes, scaled_GD[own] * -weights_A1)
            gradient_of_rows(view.grad_ND, view.rows_ND, view.norm_N1, out=view.grad_ND)
        ctx.save_for_backward(anchor_grad_AD.div_(tau), *(view.grad_ND for view in views))
        return (batch.weights * losses_A).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        anchor_grad_AD, *target_grads = ctx.saved_tensors
        return anchor_grad_AD * gradients[0], None, None, None, *(grad * gradients[0] for grad in target_grads)


def anchors_at_a_time(most_rows: int, num_targets: int) -> int:
    """Return how many anchors are compared with all targets at a time, the same on all workers."""
    return max(LEAST_ANCHORS, BLOCK_ELEMENTS // max(most_rows * num_targets, 1))


class _Target:
    """A view that anchors are compared with: its normalised rows, their norms, and the gradient that they get."""

    def __init__(self, target_ND: Tensor) -> None:
        self.rows_ND, self.norm_N1 = direction_and_norm(target_ND)
        self.operand_ND = operand(self.rows_ND)
        self.grad_ND = torch.empty_like(self.rows_ND)

    def add_gradient(self, exponentials: "_Exponentials", shared_bD: Tensor, *, is_first: bool) -> None:
        """Add that of a block of anchors, or set it to that of the first."""
        for targets, exp_bn in exponentials:
            if is_first:
                product(exp_bn.T, shared_bD, out=self.grad_ND[targets])
            else:
                add_product_(self.grad_ND[targets], exp_bn.T, shared_bD)


class _Exponentials:
    """exp(a_n . y_j / tau) of a few anchors and all own targets, in blocks of targets: (targets, (b, n)).

    Gone through twice. Where one block holds them all it is computed once; else each block is computed again, which
    takes less time than anchors so few that adding up the targets' gradients is most of the work.
    """

    def __init__(self, scaled_bD: Tensor, targets_ND: Tensor) -> None:
        self._scaled_bD = scaled_bD
        self._targets_ND = targets_ND
        self._step = max(1, BLOCK_ELEMENTS // max(scaled_bD.shape[0], 1))
        self._only: Tensor | None = None

    def sums_and_pulls(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return sum_j e_nj (b, 1) and sum_j e_nj y_j (b, D), over own rows, of a type that operands may not have."""
        sums_b1 = self._scaled_bD.new_zeros(self._scaled_bD.shape[0], 1, dtype=dtype)
        pulls_bD = sums_b1.new_zeros(self._scaled_bD.shape)
        for targets, exp_bn in self:
            sums_b1 += exp_bn.sum(dim=1, keepdim=True)
            add_product_(pulls_bD, exp_bn, self._targets_ND[targets])
        return sums_b1, pulls_bD

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        if self._only is not None:
            yield slice(None), self._only
            return
        num_targets = self._targets_ND.shape[0]
        for start in range(0, num_targets, self._step):
            targets = slice(start, start + self._step)
            exp_bn = (self._scaled_bD @ self._targets_ND[targets].T).exp_()
            if self._step >= num_targets:
                self._only = exp_bn
            yield targets, exp_bn


def _padded(anchors: Tensor) -> Tensor:
    """Return the anchors' rows, or weights, with zeros behind them where operands are rounded.

    The library for those products compiles one for each new shape, and every batch has another number of anchors.
    """
    if operand_dtype() == torch.float32:
        return anchors
    missing = -anchors.shape[0] % _ANCHOR_STEP
    return torch.cat([anchors, anchors.new_zeros(missing, *anchors.shape[1:])])
