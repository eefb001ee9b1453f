from functools import partial

import pytest
import torch

from diffmm_dist.losses import contrastive, equations
from diffmm_dist.losses.contrastive import info_nce
from diffmm_dist.losses.ranking import bpr_loss
from diffmm_dist.losses.regularization import squared_norm
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import matmul_precision
from diffmm_dist.rows import normalize_rows
from tests.support.builders import nodes_of, random_rows

ALONE = World.single()


def test_bpr_equals_its_equation_and_divides_by_the_nominal_batch():
    results = []
    for function in (bpr_loss, equations.bpr):
        rows = [random_rows(5, 3, seed, grad=True) for seed in range(3)]
        loss = function(*rows, divisor=8)
        loss.backward()
        results.append((loss.detach(), *(part.grad for part in rows)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_bpr_does_not_underflow():
    far = torch.full((1, 1), 200.0)
    assert float(bpr_loss(far, -far, far, divisor=1)) == pytest.approx(80_000)


def test_squared_norm_equals_its_equation():
    results = []
    for function in (squared_norm, equations.l2):
        tables = [random_rows(4, 3, 1, grad=True), random_rows(2, 3, 2, grad=True)]
        total = function(*tables)
        total.backward()
        results.append((total.detach(), *(table.grad for table in tables)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_normalized_rows_equal_their_equation():
    results = []
    for function in (normalize_rows, equations.unit):
        rows = random_rows(4, 3, 1)
        rows[2] = 0
        unit = function(rows.requires_grad_())
        (unit * random_rows(4, 3, 2)).sum().backward()
        results.append((unit.detach(), rows.grad[[0, 1, 3]]))  # of a row of zeros either gradient is huge
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def ours_of(anchors, targets, nodes, temperature, **options):
    batch = nodes_of(nodes, len(targets))
    return info_nce(anchors, [targets], batch, temperature=temperature, world=ALONE, **options)


@pytest.mark.parametrize("temperature", [0.03, 0.1, 0.5, 2.0])
@pytest.mark.parametrize(("block_elements", "least_anchors"), [(1, 1), (1, 64), (12, 3), (30, 1), (1 << 21, 64)])
def test_info_nce_equals_the_naive_formula(temperature, block_elements, least_anchors, monkeypatch):
    monkeypatch.setattr(contrastive, "BLOCK_ELEMENTS", block_elements)
    monkeypatch.setattr(contrastive, "LEAST_ANCHORS", least_anchors)
    nodes = torch.tensor([3, 0, 3, 9, 3, 5])  # with repeats
    results = []
    for function in (ours_of, equations.info_nce):
        anchors, targets = random_rows(10, 4, 1, grad=True), random_rows(10, 4, 2, grad=True)
        loss = function(anchors, targets, nodes, temperature=temperature)
        (3 * loss).backward()
        results.append((loss, anchors.grad, targets.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_info_nce_among_the_batch_alone():
    nodes = torch.tensor([3, 0, 3, 9, 3, 5])
    results = []
    for function in (partial(ours_of, in_batch=True), in_batch_reference):
        anchors, targets = random_rows(10, 4, 1, grad=True), random_rows(10, 4, 2, grad=True)
        loss = function(anchors, targets, nodes, temperature=0.2)
        loss.backward()
        results.append((loss, anchors.grad, targets.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def in_batch_reference(anchors, targets, nodes, temperature):
    """The same sum with the denominator over the batch's distinct nodes."""
    distinct, places = torch.unique(nodes, return_inverse=True)
    return equations.info_nce(anchors[distinct], targets[distinct], places, temperature=temperature)


def test_info_nce_over_a_sample_of_the_nodes_is_that_over_all_on_average():
    anchors, targets, nodes = random_rows(10, 4, 1), random_rows(10, 4, 2), torch.tensor([3, 0, 3, 9, 3, 5])
    batch = nodes_of(nodes, 10)
    assert batch.sampled(batch.nodes, max_nodes=4, stream=RandomStream(1), world=ALONE) is batch
    losses, counts = [], []
    for number in range(2000):
        sample = batch.sampled(batch.nodes, max_nodes=2, stream=RandomStream.of(number), world=ALONE)
        losses.append(info_nce(anchors, [targets], sample, temperature=0.5, world=ALONE))
        counts.append(sample.nodes.numel())
    assert sum(counts) / 2000 == pytest.approx(2, abs=0.1)
    whole = info_nce(anchors, [targets], batch, temperature=0.5, world=ALONE)
    deviation = torch.stack(losses).std() / 2000**0.5
    assert abs(torch.stack(losses).mean() - whole) < 5 * deviation
    assert deviation > 0


def test_info_nce_of_a_view_with_itself():
    rows = random_rows(6, 3, 1, grad=True)
    nodes = torch.arange(6)
    ours_of(rows, rows, nodes, temperature=0.5).backward()
    ours, rows.grad = rows.grad, None
    equations.info_nce(rows, rows, nodes, temperature=0.5).backward()
    torch.testing.assert_close(ours, rows.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_anchors", [1, 63, 64, 70])
def test_info_nce_with_rounded_operands(num_anchors):
    """Values and gradients to the precision of bfloat16, whatever the number of anchors is padded to."""
    nodes = torch.arange(num_anchors)
    results = []
    for precision in ("float32", "bfloat16"):
        anchors, targets = random_rows(90, 16, 1, grad=True), random_rows(90, 16, 2, grad=True)
        with matmul_precision(precision):
            loss = ours_of(anchors, targets, nodes, temperature=0.5)
        loss.backward()
        results.append((loss.detach(), anchors.grad, targets.grad))
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 2e-2 * exact.norm()
    assert not torch.equal(results[0][1], results[1][1])
