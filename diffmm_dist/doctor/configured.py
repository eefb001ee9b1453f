"""What a configuration names and needs: its places, and the memory of its workers."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from diffmm_dist.doctor.finding import Check, Finding
from diffmm_dist.doctor.places import writable
from diffmm_dist.errors import UserError
from diffmm_dist.runs.config import Config

if TYPE_CHECKING:
    import torch


def checks(config: Config, *, on_cluster: bool) -> dict[str, Check]:
    """Return what there is to look at, by its name.

    Args:
        config: a valid one.
        on_cluster: the workers run on a cluster, on machines of which nothing is known here.
    """
    return {
        "data.path": partial(_data, config),
        "run.path": partial(writable, "run.path", config.run.path),
        "estimate": partial(_estimate, config, on_cluster),
    }


def _data(config: Config) -> Iterator[Finding]:
    from diffmm_dist.training.build import check_trainable, open_dataset

    dataset = open_dataset(config)
    check_trainable(config, dataset)
    sizes = f"{dataset.num_users:,} users and {dataset.num_items:,} items"
    yield Finding("data.path", "ok", f"{config.data.path} is a dataset of {sizes}")


def _estimate(config: Config, on_cluster: bool) -> Iterator[Finding]:
    """Yield what `train` says of the memory, before any of it is taken; nothing without the dataset."""
    from diffmm_dist.training.build import choose_device, open_dataset
    from diffmm_dist.training.clip import clipped
    from diffmm_dist.training.estimate import check_memory, estimate, program_bytes

    try:
        manifest = open_dataset(config).manifest
    except UserError:  # which the line of data.path says
        return
    used, _ = clipped(config, manifest)
    device = choose_device(config.cluster.device)
    workers = _fewest(config)
    program, on_gpu = program_bytes(device), device.type == "cuda"
    if on_cluster:
        needs = estimate(used, manifest, num_workers=workers, program=program, on_gpu=on_gpu)
        yield Finding("estimate", "note", f"a worker is estimated to need {needs}; what the nodes have shows there")
        return
    here = _workers_of(device, workers)
    # It takes this much of every worker for taken already; here that is true of this process alone.
    available = max(0, available_on(device) - (here - 1) * program)
    line = check_memory(
        used, manifest, num_workers=workers, workers_here=here, available=available, program=program, on_gpu=on_gpu
    )
    yield Finding("estimate", "ok", line)


def available_on(device: "torch.device") -> int:
    """Return the bytes that processes can still get of this machine's memory, or of the GPU's."""
    from diffmm_dist.training.available import available_memory

    return available_memory(device)


def _workers_of(device: "torch.device", workers: int) -> int:
    """Return how many workers share a device's memory: on GPUs each has one to itself."""
    return 1 if device.type == "cuda" else workers


def _fewest(config: Config) -> int:
    """Return the least number of workers, each of which then has most to hold."""
    count = config.cluster.num_workers
    return max(1, count if isinstance(count, int) else count[0])
