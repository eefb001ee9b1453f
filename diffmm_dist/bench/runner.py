"""Training once per seed and summarising what came out."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import parent_process
from statistics import mean, median, stdev
from threading import Thread
from typing import Any

from diffmm_dist import storage
from diffmm_dist.bench.calibration import PRODUCT, ProductTimer
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.interrupts import result_of
from diffmm_dist.monitoring.log import set_up_logging
from diffmm_dist.parallel.group import new_processes
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.protocol import SELECTION_SPLIT
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.training.build import model_entry
from diffmm_dist.training.worker import prepare_process, run_worker


def bench_seeds(config: Config, seeds: Sequence[int], out: str) -> None:
    """Train a configuration once per seed, each in a process of its own, and write a JSON file.

    Times are also given in units of one matrix product timed between the epochs of the same run. A run that was
    interrupted is resumed; its times are those of all its epochs, its products those of this process.

    Args:
        config: run.path gets one folder per seed.
        seeds: the seeds.
        out: the JSON file.
    """
    prepare_process(config.cluster.threads_per_worker)  # so that ``machine`` counts the threads of the runs
    runs = [_in_new_process(config, seed) for seed in seeds]
    storage.write_json(
        out,
        {
            "command": command(),
            "machine": machine(),
            "calibration": PRODUCT,
            "config": config.model_dump(mode="json"),
            "runs": runs,
            "summary": summarize(runs),
        },
    )


def _in_new_process(config: Config, seed: int) -> dict[str, Any]:
    """Train one seed where no earlier one has left its memory."""
    with new_process() as process:
        return result_of(process.submit(_run, config, seed))


def new_process() -> AbstractContextManager[ProcessPoolExecutor]:
    """Return a process that starts from nothing and ends with this one, even if this one is killed."""
    return new_processes(1, initializer=_start_process)


def _start_process() -> None:
    set_up_logging()
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(config: Config, seed: int) -> dict[str, Any]:
    tree = config.model_dump()
    tree["run"] = {"seed": seed, "path": storage.join(config.run.path, f"seed-{seed}")}
    timer = ProductTimer()
    result = run_worker(Config.model_validate(tree), stop_requested=lambda: False, recorders=[timer])
    kept = {key: value for key, value in result.items() if key not in ("config", "run")}
    records = RunFolder(tree["run"]["path"]).records()
    return (
        kept | in_products(result, timer.seconds) | {"curve": curve(config, records), "losses": losses(config, records)}
    )


def curve(config: Config, records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the selecting metric of every evaluated epoch, on the split that picks the best one, of all stages."""
    wanted = f"{SELECTION_SPLIT[config.eval.protocol]}/{config.eval.metric}"
    # Of several stages each has tags of its own, which begin with its name.
    return [record[tag] for record in records for tag in record if tag == wanted or tag.endswith(f"/{wanted}")]


def losses(config: Config, records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the mean of every loss that the model names in every epoch."""
    followed = model_entry(config).measures.losses
    tags = [tag for tag in records[0] if tag.startswith(followed)] if records else []
    return {tag: [record[tag] for record in records if tag in record] for tag in tags}


def in_products(result: Mapping[str, Any], product_seconds: Sequence[float]) -> dict[str, Any]:
    """Return the median times of a run divided by the median time of the product; nothing if none was timed."""
    if not product_seconds:
        return {}
    unit = median(product_seconds)
    return {
        "product_seconds": unit,
        "products_per_epoch": result["seconds_per_epoch"] / unit,
        "products_per_phase": {name: value / unit for name, value in result["seconds_per_phase"].items()},
    }


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, sample standard deviation and values of every metric, and medians of the times."""
    summary: dict[str, Any] = {}
    for split in ("valid", "test"):
        for name in runs[0][split]:
            values = [run[split][name] for run in runs]
            spread = stdev(values) if len(values) > 1 else 0.0
            summary[f"{split}/{name}"] = {"mean": mean(values), "spread": spread, "values": values}
    timed = [run for run in runs if "products_per_epoch" in run]
    if timed:
        summary["products_per_epoch"] = median(run["products_per_epoch"] for run in timed)
        summary["products_per_phase"] = {
            name: median(run["products_per_phase"][name] for run in timed) for name in timed[0]["products_per_phase"]
        }
    summary["seconds_per_epoch"] = median(run["seconds_per_epoch"] for run in runs)
    summary["peak_rss_gib"] = max(run["peak_rss_gib"] for run in runs)
    return summary
