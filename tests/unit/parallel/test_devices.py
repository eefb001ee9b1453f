"""Which device a worker computes on, and what a process group must carry for it."""

import pytest
import torch
import torch.distributed as dist

from diffmm_dist.errors import UserError
from diffmm_dist.parallel.collectives import any_worker, exchange_counts, worker_counts
from diffmm_dist.parallel.world import World
from diffmm_dist.training.build import choose_device


@pytest.mark.parametrize("requested", ["auto", "cuda"])
def test_a_worker_computes_on_the_gpu_that_is_its_processs_present_one(requested, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert choose_device(requested) == torch.device("cuda:3")
    assert choose_device("cpu") == torch.device("cpu")


def test_without_a_gpu_there_is_the_processor_or_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="torch sees no GPU here"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("device", "config", "missing"),
    [
        ("cpu", "cpu:gloo,cuda:gloo", None),
        ("cuda:1", "cpu:gloo,cuda:nccl", None),
        ("cuda:1", "cuda:nccl", "cpu"),
        ("cuda", "cpu:gloo", "cuda"),
    ],
)
def test_a_process_group_carries_rows_of_the_device_and_counts_of_the_host(device, config, missing, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend_config", lambda: config)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    if missing is None:
        assert World.current(device) == World(1, 2, torch.device(device))
    else:
        with pytest.raises(UserError, match=f"{config}, carries nothing that lies on {missing}; begin it with"):
            World.current(device)


def test_counts_and_votes_lie_in_main_memory_whatever_the_device(monkeypatch):
    seen = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: seen.append(tensor.device.type))
    monkeypatch.setattr(
        dist, "all_to_all_single", lambda out, own, **_: seen.extend((out.device.type, own.device.type))
    )
    world = World(0, 2, torch.device("meta"))
    any_worker(True, world)
    assert worker_counts(5, world) == [5, 0]
    exchange_counts(torch.tensor([1, 2]), world)
    assert seen == ["cpu"] * 4
