"""Real worker processes with a process group over loopback."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from diffmm_dist.parallel import collectives
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from tests.support.forked import START
from tests.support.processes import free_port

SIZES = [1, 2, 3]


def _worker(rank, size, port, timeout_s, checks):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    try:
        for check in checks:
            check(World.current())
    finally:
        dist.destroy_process_group()


def on_workers(size, *checks, timeout_s=120):
    """Run each ``check(world)`` on every worker of a group, in this process where there is only one.

    A check is a function of a module, or a ``functools.partial`` of one. Starting workers takes longer than most
    checks, so one group runs several.
    """
    if size == 1:
        for check in checks:
            check(World.single())
    else:
        arguments = size, free_port(), timeout_s, checks
        start_processes(_worker, args=arguments, nprocs=size, start_method=START)


def exchanges_of(action):
    """What an action returns, and how many of torch's collectives this worker took part in meanwhile."""
    calls, whole = [], collectives._together

    def counted(operation, *arguments, **options):
        if getattr(operation, "__name__", "") != "wait":  # which ends one that has begun
            calls.append(operation)
        return whole(operation, *arguments, **options)

    collectives._together = counted
    try:
        return action(), len(calls)
    finally:
        collectives._together = whole


def shard_with(world, user_bounds, item_bounds, user_ids=None, item_ids=None):
    """A shard with any cuts, and with any numbering of the rows."""
    users, items = Ownership(tuple(user_bounds), world.rank), Ownership(tuple(item_bounds), world.rank)
    user_ids = torch.arange(users.total) if user_ids is None else user_ids
    item_ids = torch.arange(items.total) if item_ids is None else item_ids
    return Shard(world, users, items, user_ids[users.own.start : users.own.stop], item_ids)


def cuts(total, size, empty=None):
    """Bounds of nearly even ranges; the worker ``empty`` gets no row."""
    workers = [rank for rank in range(size) if rank != empty] or [0]
    bounds, done = [0], 0
    for rank in range(size):
        if rank in workers:
            done += 1
        bounds.append(total * done // len(workers))
    return bounds
