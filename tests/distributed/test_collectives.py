"""Collectives over real processes equal the sums computed here, and are the identity in a world of one."""

import pytest
import torch

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation.metrics import MetricSums
from diffmm_dist.parallel.collectives import (
    agree,
    all_reduce_max,
    all_reduce_sum,
    any_worker,
    gather_rows,
    worker_counts,
)
from diffmm_dist.parallel.halo import extended, localize
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership, even_range
from diffmm_dist.parallel.world import World
from tests.support.builders import random_pairs, random_rows
from tests.support.workers import SIZES, cuts, on_workers


def check_sums(world):
    own = torch.tensor([1.0, world.rank])
    total = all_reduce_sum(own, world)
    assert total.tolist() == [world.size, sum(range(world.size))]
    assert own.tolist() == [1.0, world.rank]
    assert any_worker(world.rank == world.size - 1, world)
    assert not any_worker(False, world)
    assert all_reduce_max(float(world.rank), world) == world.size - 1
    assert worker_counts(world.rank * 5, world) == [rank * 5 for rank in range(world.size)]
    rows = torch.full((world.rank, 2), float(world.rank))  # the first worker has none
    gathered = gather_rows(rows, list(range(world.size)), world, purpose="test")
    assert gathered[:, 0].tolist() == [rank for rank in range(world.size) for _ in range(rank)]


def check_agreement(world):
    """A mistake that one worker finds is raised on all."""

    def check():
        if world.rank == world.size - 1:
            raise UserError("the file is damaged")
        return world.rank

    assert agree(lambda: world.rank, world) == world.rank
    with pytest.raises(UserError, match="the file is damaged" if world.rank == world.size - 1 else "another worker"):
        agree(check, world)


def check_halo(world):
    """Rows from anywhere, and the gradients' way back, equal indexing the whole table."""
    table = random_rows(11, 3, seed=1)
    for empty in (None, 0, world.size - 1):
        ownership = Ownership(tuple(cuts(11, world.size, empty if world.size > 1 else None)), world.rank)
        wanted = torch.randint(11, (4 * world.rank,), generator=torch.Generator().manual_seed(world.rank))
        halo, local = localize(wanted, ownership, world, purpose="test")
        own = table[slice(*ownership.own)].clone().requires_grad_()
        rows = extended(own, halo).index_select(0, local)
        assert torch.equal(rows, table[wanted])
        ((world.rank + 1) * rows).sum().backward()
        counts = (world.rank + 1.0) * torch.bincount(wanted, minlength=11)
        expected = all_reduce_sum(counts, world)[slice(*ownership.own), None].expand(-1, 3)
        assert torch.equal(own.grad if own.grad is not None else torch.zeros_like(own), expected)


def check_metrics(world):
    """Users split over workers, one of them without any, give the metrics of all users."""
    truth = random_pairs(7, 11, seed=3, share=0.4)
    lists = torch.stack([torch.randperm(11, generator=torch.Generator().manual_seed(i)) for i in range(7)])
    whole = MetricSums([2, 5], num_items=11, device=world.device, retrieved_ndcg=True)
    whole.add(lists, truth)
    shares = MetricSums([2, 5], num_items=11, device=world.device, retrieved_ndcg=True)
    if world.rank > 0 or world.size == 1:
        others = max(world.size - 1, 1)
        own = even_range(7, rank=max(world.rank - 1, 0), size=others)
        rows = torch.arange(own.start, own.stop)
        shares.add(lists[rows], truth.select(rows))
    expected, actual = whole.result(World.single()), shares.result(world)
    assert actual == pytest.approx(expected)


def check_batches(world):
    """The workers' parts of every batch add up to the batch."""
    total, stream = 53, RandomStream.of(1)
    whole = EpochBatches(torch.arange(total), total=total, batch_size=8, stream=stream)
    own = even_range(total, rank=world.rank, size=world.size)
    ids = torch.arange(own.start, own.stop)
    part = EpochBatches(ids, total=total, batch_size=8, stream=stream)
    for index in range(whole.num_batches):
        counts = torch.zeros(total)
        counts[ids[part[index]]] = 1
        expected = torch.zeros(total)
        expected[whole[index]] = 1
        assert torch.equal(all_reduce_sum(counts, world), expected)


@pytest.mark.parametrize("size", SIZES)
def test_on_workers(size):
    on_workers(size, check_sums, check_agreement, check_halo, check_metrics, check_batches)
