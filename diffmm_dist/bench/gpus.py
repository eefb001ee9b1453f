"""How long an epoch would take on machines that are not at hand: operations and bytes over assumed speeds.

What each phase computes, moves and sends is said by the model (models/measures.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter

import torch

from diffmm_dist import storage
from diffmm_dist.bench.comm import predict, works_of
from diffmm_dist.bench.machine import command
from diffmm_dist.bench.phases import check_has_phases
from diffmm_dist.config.section import changed
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData
from diffmm_dist.models.common.work import Traffic, epoch_bytes, read_edges
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.config import Config
from diffmm_dist.training.build import load_training_data, model_entry, open_dataset
from diffmm_dist.training.estimate import estimate, needs_of


@dataclass(frozen=True)
class Assumptions:
    """What a worker's machine does per second.

    Attributes:
        tflops: float32 operations of matrix products, in 10^12.
        memory_gb_s: bytes that its memory moves, in 10^9.
        network_gb_s: bytes that it can send, in 10^9.
        latency_us: seconds that an exchange takes besides its bytes, in 10^-6.
    """

    tflops: float
    memory_gb_s: float
    network_gb_s: float
    latency_us: float


@dataclass(frozen=True)
class Work:
    """What one worker does in an epoch of a phase.

    Attributes:
        flops: operations of matrix products.
        memory_bytes: bytes read and written besides.
        sent_bytes: bytes sent.
        exchanges: messages and sums that it takes part in.
    """

    flops: float
    memory_bytes: float
    sent_bytes: float = 0
    exchanges: float = 0

    def seconds(self, assumed: Assumptions) -> float:
        """Return the time without any overlap."""
        computing = self.flops / (assumed.tflops * 1e12) + self.memory_bytes / (assumed.memory_gb_s * 1e9)
        return computing + self.sent_bytes / (assumed.network_gb_s * 1e9) + self.exchanges * assumed.latency_us * 1e-6


def bench_gpus(config: Config, sizes: Sequence[int], assumed: Assumptions, *, out: str, times: int = 1) -> None:
    """Write a JSON file with the predicted seconds of an epoch and a worker's memory, by number of workers and phase.

    Args:
        config: the run; nothing is written into its folder.
        sizes: numbers of workers.
        assumed: what each of their machines does.
        out: the JSON file.
        times: predict for a graph with so many times the users, items and interactions, trained in batches that are as
            many times larger. What is sent in a step grows as much, since a row has as many neighbours as before and a
            batch the same share of all rows.

    Raises:
        UserError: the model has no phases.
    """
    check_has_phases(config)
    dataset = open_dataset(config)
    data = load_training_data(config, dataset, World.single())
    read, enlarged = times * edges_read(config, data), _enlarged(config, times)
    prediction = {}
    for size in sizes:
        sent = predict(config, dataset, data, size)
        most = {
            phase: {purpose: times * max(worker[phase][purpose] for worker in sent) for purpose in purposes}
            for phase, purposes in sent[0].items()
        }
        works = epoch_work(enlarged, dataset, size, most, read, times=times)
        memory = estimate(enlarged, dataset.manifest, num_workers=size, program=0, times=times, on_gpu=True)
        prediction[str(size)] = {
            "work": {phase: asdict(work) for phase, work in works.items()},
            "seconds": {phase: work.seconds(assumed) for phase, work in works.items()},
            "memory_bytes": memory.phases,
        }
    storage.write_json(
        out,
        {
            "command": command(),
            "assumed": asdict(assumed),
            "torch": torch.__version__,
            "config": enlarged.model_dump(mode="json"),
            "times": times,
            "gpus": prediction,
        },
    )


def _enlarged(config: Config, times: int) -> Config:
    """Return the run with batches, and other numbers of users or items, that are so many times larger."""
    of_nodes = {f"model.{key}": "nodes" for key, bound in model_entry(config).bounds.items() if bound == "nodes"}
    values = {key: attrgetter(key)(config) for key in ["train.batch_size", *of_nodes]}
    return changed(config, {key: times * value for key, value in values.items() if value is not None})


def edges_read(config: Config, data: TrainingData) -> int:
    """Return how many edges lead to the rows that the first step reads, from all data in one process."""
    return read_edges(data, config.train.batch_size, config.run.seed, config.train.propagate_every)


def epoch_work(
    config: Config, dataset: Dataset, size: int, sent: Traffic, read: int | None = None, *, times: int = 1
) -> dict[str, Work]:
    """Return what each of ``size`` workers does in an epoch, by phase.

    Args:
        config: the run.
        dataset: its data.
        size: W.
        sent: bytes that the worker which sends most sends (``Traffic``).
        read: edges to the rows that a batch reads (models/common/work.py); None counts all.
        times: how many times as large as the dataset the data are.
    """
    needs = needs_of(config, dataset.manifest, num_workers=size, times=times)
    works = works_of(config, replace(needs, read_edges=read))
    return {
        phase: Work(work.flops, work.memory_bytes, epoch_bytes(sent.get(phase, {}), work.steps), work.exchanges)
        for phase, work in works.items()
    }
