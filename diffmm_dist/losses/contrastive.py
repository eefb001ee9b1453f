"""Contrast of two views of the same nodes, the denominator over all nodes.

Shape suffixes: B batch, A distinct anchors of the batch, N all nodes, D embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 21  # similarities held at a time: 8 MiB


def info_nce(anchor_ND: Tensor, target_ND: Tensor, nodes_B: Tensor, *, temperature: float) -> Tensor:
    """Return the contrast of two views at the batch's nodes (models/diffmm/README.md, "recommend").

    The mean over the batch's nodes n, repeats included, of

        -log( exp(cos(x_n, y_n) / tau) / sum_{all j} exp(cos(x_n, y_j) / tau) )

    with x from ``anchor_ND`` and y from ``target_ND``.

    A node that stands in the batch several times is computed once and counted as often. Time is O(A N D); memory is
    O(N D) and one block of similarities.

    Args:
        anchor_ND: view that the anchors are taken from, float32.
        target_ND: view that is contrasted with.
        nodes_B: int64, the nodes of the batch.
        temperature: tau, at least 0.03: cosines are bounded, so exp(cos / tau) needs no maximum subtracted there.
    """
    nodes_A, counts_A = torch.unique(nodes_B, return_counts=True)
    anchors_AD = F.normalize(anchor_ND.index_select(0, nodes_A), dim=1)
    weights_A = counts_A / nodes_B.numel()
    targets_ND = F.normalize(target_ND, dim=1)
    loss: Tensor = _InfoNCE.apply(anchors_AD, targets_ND, nodes_A, weights_A, temperature)  # type: ignore[no-untyped-call]
    return loss


class _InfoNCE(torch.autograd.Function):
    """Computes the loss and, in the same pass over the similarities, both gradients; backward only scales them.

    With e_nj = exp(a_n . y_j / tau) and z_n = sum_j e_nj, the gradient of sum_n w_n (log z_n - a_n . y_n / tau) is
    w_n / tau (sum_j e_nj y_j / z_n - y_n) for a_n, and sum_n w_n / tau a_n (e_nj / z_n - [j = n]) for y_j.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors_AD: Tensor, targets_ND: Tensor, nodes_A: Tensor, weights_A: Tensor, tau: float
    ) -> Tensor:
        scaled_AD = anchors_AD / tau
        positives_AD = targets_ND.index_select(0, nodes_A)
        loss = -(weights_A * (scaled_AD * positives_AD).sum(dim=1)).sum()
        anchor_grad_AD = torch.empty_like(anchors_AD)
        target_grad_ND = torch.zeros_like(targets_ND)
        step = max(1, _BLOCK_ELEMENTS // max(targets_ND.shape[0], 1))
        for start in range(0, nodes_A.numel(), step):
            block = slice(start, start + step)
            exp_bN = (scaled_AD[block] @ targets_ND.T).exp_()
            sums_b = exp_bN.sum(dim=1)
            loss += (weights_A[block] * sums_b.log()).sum()
            share_b = (weights_A[block] / sums_b)[:, None]
            torch.mul(exp_bN @ targets_ND, share_b, out=anchor_grad_AD[block])
            target_grad_ND.addmm_(exp_bN.T, scaled_AD[block] * share_b)
        anchor_grad_AD.sub_(positives_AD * weights_A[:, None]).div_(tau)
        target_grad_ND.index_add_(0, nodes_A, scaled_AD * -weights_A[:, None])
        ctx.save_for_backward(anchor_grad_AD, target_grad_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        anchor_grad_AD, target_grad_ND = ctx.saved_tensors
        return anchor_grad_AD * gradients[0], target_grad_ND * gradients[0], None, None, None
