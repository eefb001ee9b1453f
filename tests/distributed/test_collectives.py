"""Collectives over real processes equal the sums computed here, and are the identity in a world of one."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.evaluation.metrics import MetricSums
from diffmm_dist.parallel.collectives import all_reduce_sum, any_worker
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import even_range
from diffmm_dist.parallel.world import World
from tests.support.builders import random_pairs
from tests.support.processes import free_port


def _worker(rank, size, port, check):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    try:
        check(World(rank, size, torch.device("cpu")))
    finally:
        dist.destroy_process_group()


def on_workers(size, check):
    """Run ``check(world)`` on every worker of a group, in this process where there is only one."""
    if size == 1:
        check(World.single())
    else:
        mp.spawn(_worker, args=(size, free_port(), check), nprocs=size)


SIZES = [1, 2, 3]


def check_sums(world):
    own = torch.tensor([1.0, world.rank])
    total = all_reduce_sum(own, world)
    assert total.tolist() == [world.size, sum(range(world.size))]
    assert own.tolist() == [1.0, world.rank]
    assert any_worker(world.rank == world.size - 1, world)
    assert not any_worker(False, world)


def check_metrics(world):
    """Users split over workers, one of them without any, give the metrics of all users."""
    truth = random_pairs(7, 11, seed=3, share=0.4)
    lists = torch.stack([torch.randperm(11, generator=torch.Generator().manual_seed(i)) for i in range(7)])
    whole = MetricSums([2, 5], num_items=11, device=world.device)
    whole.add(lists, truth)
    shares = MetricSums([2, 5], num_items=11, device=world.device)
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
@pytest.mark.parametrize("check", [check_sums, check_metrics, check_batches])
def test_on_workers(size, check):
    on_workers(size, check)
