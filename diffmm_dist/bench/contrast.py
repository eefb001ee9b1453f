"""One contrastive term with its gradients.

Symbols: A distinct anchors, N nodes, d embedding. FLOP: similarities and both gradients, 6 A N d, in either way. Bytes
of ours: for every block of anchors the targets read twice and their gradient read and written; of the dense way: the
A x N similarities written, read and written by the log-softmax, the same once more backward, and read by two products.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmm_dist.bench.operations import FLOAT, Case, Operation, Variant
from diffmm_dist.bench.problems import STREAM, normal_rows
from diffmm_dist.losses import contrastive
from diffmm_dist.losses.contrastive import BatchNodes, info_nce
from diffmm_dist.models.common.work import contrast_flop
from diffmm_dist.models.diffmm.settings import Contrast
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World

_TEMPERATURE = Contrast().temperature


@dataclass(frozen=True)
class ContrastSize:
    """N, interactions of a batch, and d."""

    nodes: int
    batch: int
    dim: int = 64


PRESETS = {
    "tiktok": ContrastSize(nodes=9308, batch=1024),
    "large": ContrastSize(nodes=200_000, batch=2048),
}


class Problem:
    """Two random views and a random batch of their nodes."""

    def __init__(self, size: ContrastSize, device: torch.device) -> None:
        self._anchor_ND = normal_rows("anchors", size.nodes, size.dim, device).requires_grad_()
        self._target_ND = normal_rows("targets", size.nodes, size.dim, device).requires_grad_()
        self._world = World.single(device)
        drawn = STREAM.child("batch").integers(torch.arange(size.batch, device=device), size.nodes)
        counts = torch.bincount(drawn, minlength=size.nodes)
        self.batch = BatchNodes.counted(counts, Ownership((0, size.nodes)), self._world, batch_size=size.batch)

    def ours(self) -> tuple[Tensor, ...]:
        """Return the loss and the gradients of both views."""
        loss = info_nce(self._anchor_ND, [self._target_ND], self.batch, temperature=_TEMPERATURE, world=self._world)
        return self._with_gradients(loss)

    def dense(self) -> tuple[Tensor, ...]:
        """Return the same by a log-softmax over all nodes."""
        anchors_AD, targets_ND = F.normalize(self._anchor_ND[self.batch.nodes]), F.normalize(self._target_ND)
        logs_AN = torch.log_softmax(anchors_AD @ targets_ND.T / _TEMPERATURE, dim=1)
        return self._with_gradients(-self.batch.weights.dot(logs_AN.gather(1, self.batch.nodes[:, None])[:, 0]))

    def _with_gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return loss.detach(), *torch.autograd.grad(loss, (self._anchor_ND, self._target_ND))

    def relative_differences(self) -> dict[str, float]:
        """Return how far the two are apart: the norm of the difference over the norm."""
        names = ("loss", "anchor_gradient", "target_gradient")
        pairs = zip(names, self.ours(), self.dense(), strict=True)
        return {name: float((mine - other).norm() / other.norm()) for name, mine, other in pairs}


def operations(size: ContrastSize, device: torch.device) -> Iterator[Operation]:
    """Yield the term."""
    problem = Problem(size, device)
    anchors = problem.batch.nodes.numel()
    flop = contrast_flop(anchors, size.nodes, size.dim)
    blocks = -(-anchors // max(contrastive.LEAST_ANCHORS, contrastive.BLOCK_ELEMENTS // size.nodes))
    yield Operation(
        "contrastive term",
        {
            "ours": Variant(problem.ours, flop, FLOAT * 4 * blocks * size.nodes * size.dim),
            "dense log-softmax": Variant(problem.dense, flop, FLOAT * 7 * anchors * size.nodes),
        },
        lambda: {"anchors": anchors, "relative_differences": problem.relative_differences()},
    )


CASE = Case("contrast", PRESETS, operations)
