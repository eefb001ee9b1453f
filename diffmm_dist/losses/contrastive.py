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
    terms: list[Tensor] = [
        _InfoNCE.apply(anchors_AD, target_ND, batch, temperature, world)  # type: ignore[no-untyped-call, unused-ignore]
        for target_ND in targets
    ]
    return torch.stack(terms).sum()


class _InfoNCE(torch.autograd.Function):
    """Computes the loss and, from the same block of similarities, both gradients; backward only scales them.

    With e_nj = exp(a_n . y_j / tau) and z_n = sum_j e_nj, the gradient of sum_n w_n (log z_n - a_n . y_n / tau) is
    w_n / tau (sum_j e_nj y_j / z_n - y_n) for a_n, and sum_n w_n / tau a_n (e_nj / z_n - [j = n]) for y_j, from which
    follows that of the target before it was normalised. Sums over j are over all workers' rows; the one over n needs
    all anchors, which every worker has. G: anchors of all workers.
    """

    @staticmethod
    def forward(ctx: Any, anchors_AD: Tensor, target_ND: Tensor, batch: BatchNodes, tau: float, world: World) -> Tensor:
        targets_ND, norm_N1 = direction_and_norm(target_ND)
        counts = batch.worker_counts
        own = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
        scaled_GD = _padded(gather_rows(anchors_AD / tau, counts, world, purpose=TRAFFIC))
        weights_G = _padded(gather_rows(batch.weights, counts, world, purpose=TRAFFIC))
        left_GD, right_ND = operand(scaled_GD), operand(targets_ND)
        positives_AD = targets_ND.index_select(0, batch.nodes)
        logs_G = torch.empty_like(weights_G)
        anchor_grad_GD, target_grad_ND = torch.zeros_like(scaled_GD), torch.empty_like(targets_ND)
        step = max(LEAST_ANCHORS, BLOCK_ELEMENTS // max(batch.most_rows, 1))  # the same on all workers
        for start in range(0, max(left_GD.shape[0], 1), step):  # a block even without anchors: it sets the gradient
            block = slice(start, start + step)
            exponentials = _Exponentials(left_GD[block], right_ND)
            pulls_bD = anchor_grad_GD[block]
            sums_b1 = pulls_bD.new_zeros(pulls_bD.shape[0], 1)
            for targets, exp_bn in exponentials:
                sums_b1 += exp_bn.sum(dim=1, keepdim=True)
                add_product_(pulls_bD, exp_bn, right_ND[targets])
            sums_b1 = all_reduce_sum_(sums_b1, world, purpose=TRAFFIC)
            torch.log(sums_b1[:, 0], out=logs_G[block])
            share_b1 = weights_G[block, None] / sums_b1
            pulls_bD *= share_b1
            shared_bD = operand(scaled_GD[block] * share_b1)
            for targets, exp_bn in exponentials:
                if start == 0:
                    product(exp_bn.T, shared_bD, out=target_grad_ND[targets])
                else:
                    add_product_(target_grad_ND[targets], exp_bn.T, shared_bD)
        scaled_AD = scaled_GD[own]
        loss = (batch.weights * (logs_G[own] - (scaled_AD * positives_AD).sum(dim=1))).sum()
        anchor_grad_AD = all_reduce_sum_(anchor_grad_GD, world, purpose=TRAFFIC)[own]
        anchor_grad_AD.sub_(positives_AD * batch.weights[:, None]).div_(tau)
        target_grad_ND.index_add_(0, batch.nodes, scaled_AD * -batch.weights[:, None])
        gradient_of_rows(target_grad_ND, targets_ND, norm_N1, out=target_grad_ND)
        ctx.save_for_backward(anchor_grad_AD, target_grad_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        anchor_grad_AD, target_grad_ND = ctx.saved_tensors
        return anchor_grad_AD * gradients[0], target_grad_ND * gradients[0], None, None, None


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
