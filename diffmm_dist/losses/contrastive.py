"""Contrast of two views of the same nodes, the denominator over all nodes.

Shape suffixes: B batch, A distinct anchors of the batch, N own nodes, D embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.parallel.collectives import all_reduce_sum_each, gather_each, worker_counts, worker_counts_each
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
        return sampled_each([self], [ids], [stream], max_nodes=max_nodes, world=world)[0]

    def among_themselves(self) -> "BatchNodes":
        """Return the same nodes, numbered among the batch's nodes alone."""
        nodes = torch.arange(self.nodes.numel(), device=self.nodes.device)
        return BatchNodes(nodes, self.weights, self.worker_counts, max(self.worker_counts))


def sampled_each(
    batches: Sequence[BatchNodes],
    ids: Sequence[Tensor],
    streams: Sequence[RandomStream],
    *,
    max_nodes: int,
    world: World,
) -> list[BatchNodes]:
    """Return ``sampled`` of each of several batches' nodes, with one exchange."""
    shares = [max_nodes / max(sum(batch.worker_counts), 1) for batch in batches]
    if all(share >= 1 for share in shares):
        return list(batches)
    kept = [stream.uniform(of_batch) < share for stream, of_batch, share in zip(streams, ids, shares, strict=True)]
    nodes = [batch.nodes[which] for batch, which in zip(batches, kept, strict=True)]
    of_workers = worker_counts_each([rows.numel() for rows in nodes], world)
    return [
        batch if share >= 1 else BatchNodes(rows, batch.weights[which] / share, counts, batch.most_rows)
        for batch, share, which, rows, counts in zip(batches, shares, kept, nodes, of_workers, strict=True)
    ]


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
    term = Term(anchor_ND, targets, batch)
    return info_nce_of_terms([term], temperature=temperature, world=world, in_batch=in_batch)


@dataclass(frozen=True, eq=False)
class Term:
    """A view whose nodes are anchors, and others that it is contrasted with: the arguments of ``info_nce``."""

    anchor_ND: Tensor
    targets: Sequence[Tensor]
    batch: BatchNodes


def info_nce_of_terms(terms: Sequence[Term], *, temperature: float, world: World, in_batch: bool = False) -> Tensor:
    """Return the sum of ``info_nce`` of several terms; among the batch's nodes alone they share their exchanges."""
    if in_batch:
        return _of_terms([_among_themselves(term) for term in terms], temperature, world)
    # One at a time: their normalised views are large then.
    return torch.stack([_of_terms([term], temperature, world) for term in terms]).sum()


def _among_themselves(term: Term) -> Term:
    """Return a term over the rows of the batch's nodes alone."""
    anchor, *targets = (view_ND.index_select(0, term.batch.nodes) for view_ND in (term.anchor_ND, *term.targets))
    return Term(anchor, targets, term.batch.among_themselves())


def _of_terms(terms: Sequence[Term], tau: float, world: World) -> Tensor:
    anchors = [normalize_rows(term.anchor_ND.index_select(0, term.batch.nodes)) for term in terms]
    targets = [target_ND for term in terms for target_ND in term.targets]
    shapes = [(term.batch, len(term.targets)) for term in terms]
    loss: Tensor = _InfoNCE.apply(shapes, tau, world, *anchors, *targets)  # type: ignore[no-untyped-call, unused-ignore]
    return loss


class _InfoNCE(torch.autograd.Function):
    """Computes the loss and, from the same block of similarities, all gradients; backward only scales them.

    With e_nj = exp(a_n . y_j / tau) and z_n = sum_j e_nj, the gradient of sum_n w_n (log z_n - a_n . y_n / tau) is
    w_n / tau (sum_j e_nj y_j / z_n - y_n) for a_n, and sum_n w_n / tau a_n (e_nj / z_n - [j = n]) for y_j, from which
    follows that of the target before it was normalised. Sums over j are over all workers' rows; the one over n needs
    all anchors, which every worker has. Anchors and their gradients are sent once for all targets, and the targets'
    sums together, those of all terms in the same messages. G: anchors of all workers; K: targets of a term.
    """

    @staticmethod
    def forward(ctx: Any, shapes: Sequence[tuple[BatchNodes, int]], tau: float, world: World, *views: Tensor) -> Tensor:
        anchors, targets = views[: len(shapes)], iter(views[len(shapes) :])
        sent = [
            torch.cat([anchors_AD / tau, batch.weights[:, None].to(anchors_AD.dtype)], dim=1)
            for anchors_AD, (batch, _) in zip(anchors, shapes, strict=True)
        ]
        counts = [batch.worker_counts for batch, _ in shapes]
        gathered = gather_each(sent, counts, world, purpose=TRAFFIC)
        terms = [
            _Anchors(_padded(rows), batch, [next(targets) for _ in range(count)], world.rank)
            for rows, (batch, count) in zip(gathered, shapes, strict=True)
        ]
        for number in range(max(term.num_blocks for term in terms)):
            sums = all_reduce_sum_each([term.sums(number) for term in terms], world, purpose=TRAFFIC)
            for term, sums_bK in zip(terms, sums, strict=True):
                term.spread(number, sums_bK)
        summed = all_reduce_sum_each([term.grad_GD for term in terms], world, purpose=TRAFFIC)
        losses, anchor_grads = zip(*(term.finish(rows) for term, rows in zip(terms, summed, strict=True)), strict=True)
        target_grads = [view.grad_ND for term in terms for view in term.views]
        ctx.save_for_backward(*(grad.div_(tau) for grad in anchor_grads), *target_grads)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(grad * gradients[0] for grad in ctx.saved_tensors)


class _Anchors:
    """The anchors of a term, of all workers, and the own rows that they are compared with, block by block.

    Args:
        gathered: anchors over tau and their weights, (G, D + 1).
        batch: the nodes.
        targets: the views (N, D).
        rank: of this worker.
    """

    def __init__(self, gathered: Tensor, batch: BatchNodes, targets: Sequence[Tensor], rank: int) -> None:
        self._batch = batch
        counts = batch.worker_counts
        self._own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        self._scaled_GD, self._weights_G1 = gathered[:, :-1].contiguous(), gathered[:, -1:]
        self._left_GD = operand(self._scaled_GD)
        self._logs_GK = gathered.new_empty(gathered.shape[0], len(targets))
        self._step = anchors_at_a_time(batch.most_rows, len(targets))
        self.views = [_Target(target) for target in targets]
        self.grad_GD = torch.zeros_like(self._scaled_GD)

    @property
    def num_blocks(self) -> int:
        """How many there are: one even without anchors, which sets the gradients."""
        return max(1, -(-self._scaled_GD.shape[0] // self._step))

    def _block(self, number: int) -> slice:
        return slice(number * self._step, (number + 1) * self._step)

    def sums(self, number: int) -> Tensor:
        """Return sum_j e_nj over own rows of a block of anchors and of each view, (b, K)."""
        left_bD = self._left_GD[self._block(number)]
        self._exponentials = [_Exponentials(left_bD, view.operand_ND) for view in self.views]
        self._pulls, sums = [], []
        for each in self._exponentials:
            sums_b1, pulls_bD = each.sums_and_pulls(self._scaled_GD.dtype)
            sums.append(sums_b1)
            self._pulls.append(pulls_bD)
        return torch.cat(sums, dim=1)

    def spread(self, number: int, sums_bK: Tensor) -> None:
        """Go on with the block, whose sums over all workers' rows are these."""
        block = self._block(number)
        if number >= self.num_blocks:  # another term has more
            return
        self._logs_GK[block] = sums_bK.log()
        shares = (self._weights_G1[block] / sums_bK).split(1, dim=1)
        for view, each, pulls_bD, share_b1 in zip(self.views, self._exponentials, self._pulls, shares, strict=True):
            self.grad_GD[block].addcmul_(pulls_bD, share_b1)
            view.add_gradient(each, operand(self._scaled_GD[block] * share_b1), is_first=number == 0)

    def finish(self, grad_GD: Tensor) -> tuple[Tensor, Tensor]:
        """Return this worker's share of the loss and tau times the own anchors' gradients, from all workers' sums."""
        nodes, own_scaled_AD = self._batch.nodes, self._scaled_GD[self._own]
        grad_AD, weights_A1 = grad_GD[self._own], self._batch.weights[:, None]
        losses_A = self._logs_GK[self._own].sum(dim=1)
        for view in self.views:
            positives_AD = view.rows_ND.index_select(0, nodes)
            losses_A -= (own_scaled_AD * positives_AD).sum(dim=1)
            grad_AD.sub_(positives_AD * weights_A1)
            view.grad_ND.index_add_(0, nodes, own_scaled_AD * -weights_A1)
            gradient_of_rows(view.grad_ND, view.rows_ND, view.norm_N1, out=view.grad_ND)
        return (self._batch.weights * losses_A).sum(), grad_AD


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
