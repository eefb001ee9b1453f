"""Reading datasets from different places, in turns."""

import multiprocessing
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

from diffmm_dist import storage
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.data.dataset import Cursor, Dataset
from diffmm_dist.data.stream import Reading
from diffmm_dist.monitoring.timing import peak_rss_gib, take_turns
from diffmm_dist.training.worker import prepare_process

_MIB = 2**20
_UNCHECKED = "unchecked "


def bench_stream(datasets: Sequence[str], out: str, *, repeats: int, batches_ahead: int, threads: int = 1) -> None:
    """Time a pass over all training interactions and features of each dataset, in turns; write a JSON file.

    Each is read with and without comparing its files with their checksums. Peak memory is that of a process of its own
    for each dataset, the program included.

    Args:
        datasets: where they are; the first is what the others are compared with.
        out: the JSON file.
        repeats: how often to read each.
        batches_ahead: record batches fetched from S3 in advance.
        threads: of the reader's arithmetic; one is what a worker has where there are as many workers as cores.
    """
    prepare_process(threads)
    opened = {uri: Dataset.open(uri, Reading(batches_ahead)) for uri in datasets}
    unchecked = {f"{_UNCHECKED}{uri}": Dataset.open(uri, Reading(batches_ahead, verify=False)) for uri in datasets}
    times = take_turns(
        {name: partial(read_all, dataset) for name, dataset in (opened | unchecked).items()}, repeats=repeats
    )
    results: dict[str, dict[str, Any]] = {}
    for uri, dataset in opened.items():
        seconds = times[uri]
        mib = read_all(dataset) / _MIB
        results[uri] = {
            "interactions": dataset.manifest.num_interactions("train"),
            "mib": mib,
            "seconds": _spread(seconds),
            "mib_per_s": mib / median(seconds),
            "speed_of_first": _spread(_ratios(times[datasets[0]], seconds)),
            "speed_of_unchecked": _spread(_ratios(times[f"{_UNCHECKED}{uri}"], seconds)),
            "peak_mib": _peak_mib(uri, batches_ahead, threads),
        }
    storage.write_json(
        out, {"command": command(), "machine": machine(), "batches_ahead": batches_ahead, "streams": results}
    )


def _ratios(seconds: Sequence[float], others: Sequence[float]) -> list[float]:
    return [mine / other for mine, other in zip(seconds, others, strict=True)]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def read_all(dataset: Dataset) -> int:
    """Read the interactions of an epoch, shuffled, and all features, batch by batch; return their bytes."""
    num_bytes = 0
    for users, items, _ in dataset.stream_epoch("train", Cursor(), seed=0):
        num_bytes += users.nbytes + items.nbytes
    for name in dataset.manifest.modalities:
        for _, rows in dataset.stream_features(name):
            num_bytes += rows.nbytes
    return num_bytes


def _peak_mib(uri: str, batches_ahead: int, threads: int) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak, (uri, batches_ahead, threads))


def _measure_peak(uri: str, batches_ahead: int, threads: int) -> float:
    prepare_process(threads)
    read_all(Dataset.open(uri, Reading(batches_ahead)))
    return peak_rss_gib() * 1024
