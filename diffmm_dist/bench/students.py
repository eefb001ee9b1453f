"""Runs side by side by what it takes to serve them: recall, parameters, bundle, time to rank all users."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from diffmm_dist import storage
from diffmm_dist.bench.calibration import PRODUCT, ProductTimer
from diffmm_dist.bench.machine import command, machine
from diffmm_dist.bench.plots import pyplot, save
from diffmm_dist.bundles.bundle import Bundle, read_bundle
from diffmm_dist.bundles.recommender import Recommender
from diffmm_dist.config.render import flatten
from diffmm_dist.errors import UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.monitoring.log import print_table
from diffmm_dist.monitoring.timing import take_turns
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.runs.run_records import Result
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.worker import prepare_process

METRICS = ("recall@20", "ndcg@20")
_LISTED = 20
_MARKERS = "oDvs^<>pXP"


def groups_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return run folders by group from texts such as ``DiffMM=runs/a,runs/b``.

    Raises:
        UserError: one is no such text, or a name is there twice.
    """
    groups: dict[str, list[str]] = {}
    for text in texts:
        name, _, runs = text.partition("=")
        folders = [run.strip() for run in runs.split(",") if run.strip()]
        if not name.strip() or not folders:
            raise UserError(f"--group {text} does not name a group and its runs; write NAME=RUN,RUN")
        if name.strip() in groups:
            raise UserError(f"--group {name.strip()} is given twice; name each group once, with all of its runs")
        groups[name.strip()] = folders
    return groups


def bench_students(
    groups: Mapping[str, Sequence[str]], *, threads: int, repeats: int, out: str, plot: str | None
) -> None:
    """Compare groups of runs, each of one model trained with several seeds; write a JSON file and a picture.

    Parameters are those of what is deployed, and so is the bundle; an epoch's time is that of the run's last stage.

    Args:
        groups: run folders by what a group is called.
        threads: of torch, while all users are ranked.
        repeats: how often they are ranked, group after group.
        out: the JSON file.
        plot: SVG file with recall against the bundle's size.

    Raises:
        UserError: a run has not finished, or they are not of one dataset and protocol.
    """
    prepare_process(threads)
    results = {name: [_result(run) for run in runs] for name, runs in groups.items()}
    _check_comparable(groups, results)
    found, bundles = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, runs) in enumerate(groups.items()):
            bundle = f"{folder}/{number}"
            found[name] = _described(runs, results[name], bundle)
            bundles[name] = read_bundle(bundle)
    timer = ProductTimer()
    cases: dict[str, Callable[[], object]] = {name: partial(_rank_all, bundle) for name, bundle in bundles.items()}
    seconds = take_turns({**cases, "": timer.product}, repeats=repeats)
    unit = median(seconds.pop(""))
    for name, times in seconds.items():
        found[name] |= {"rank_seconds": median(times), "rank_products": median(times) / unit}
    document = {"command": command(), "machine": machine(), "calibration": PRODUCT, "product_seconds": unit}
    storage.write_json(out, document | {"groups": found})
    if plot is not None:
        _draw(found, plot)
    print_table("", COLUMNS, [row_of(name, group) for name, group in found.items()])


def _result(run: str) -> Result:
    result = RunFolder.existing(run).result()
    if result is None:
        raise UserError(f"run {run} has not finished; run its `train` command again")
    if not all(metric in result["test"] for metric in METRICS):
        raise UserError(
            f"run {run} was not measured at {_LISTED} on test; `evaluate {run} --k {_LISTED}` shows whether"
        )
    return result


def _check_comparable(groups: Mapping[str, Sequence[str]], results: Mapping[str, Sequence[Result]]) -> None:
    datasets = {RunFolder.existing(run).identity()["dataset"] for runs in groups.values() for run in runs}
    protocols = {result["protocol"] for of_group in results.values() for result in of_group}
    for name, runs in groups.items():
        settings = [_without_seed(flatten(RunFolder.existing(run).config())) for run in runs]
        if any(one != settings[0] for one in settings) or len(set(runs)) < len(runs):
            raise UserError(f"the runs of --group {name} differ in more than their seeds, or one is there twice")
    if len(datasets) > 1 or len(protocols) > 1:
        raise UserError(
            "the runs are not of one dataset and one eval.protocol, so they cannot be compared; name others"
        )


def _without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.startswith("run.")}


def _described(runs: Sequence[str], results: Sequence[Result], bundle: str) -> dict[str, Any]:
    """Return what a group's results say, and what its first run takes to deploy; its bundle is written."""
    trained = load_trained(runs[0])
    export_bundle(trained, bundle)
    values = {metric: [result["test"][metric] for result in results] for metric in METRICS}
    return {
        "runs": list(runs),
        "model": trained.config.model.name,
        "test": {
            metric: {
                "mean": mean(of_seeds),
                "spread": stdev(of_seeds) if len(of_seeds) > 1 else 0.0,
                "values": of_seeds,
            }
            for metric, of_seeds in values.items()
        },
        "parameters": sum(parameter.numel() for parameter in trained.model.deployed().parameters()),
        "embedding_dim": trained.model.embeddings()[0].shape[1],
        "bundle_bytes": sum(path.stat().st_size for path in Path(bundle).iterdir()),
        "epoch_seconds": median(_seconds_per_epoch(result) for result in results),
    }


def _seconds_per_epoch(result: Result) -> float:
    stages = result.get("stages")
    return stages[-1]["seconds_per_epoch"] if stages else result["seconds_per_epoch"]


def _rank_all(bundle: Bundle) -> int:
    """Rank all items for all users, but for what they know; return how many users there were."""
    recommender = Recommender(bundle)
    users = np.arange(len(bundle.user_rows))
    return len(recommender.lists(users, _LISTED, exclude_seen=True, rule=None).rows)


COLUMNS = ["", *(f"test {metric}" for metric in METRICS), "seeds", "width", "parameters", "bundle MiB", "epoch s",
            "ranking s"]  # fmt: skip


def row_of(name: str, group: Mapping[str, Any]) -> list[str]:
    """Return a group's line of the table."""
    several = len(group["runs"]) > 1
    figures = [
        f"{found['mean']:.4f} ± {found['spread']:.4f}" if several else f"{found['mean']:.4f}"
        for found in group["test"].values()
    ]
    return [
        name,
        *figures,
        str(len(group["runs"])),
        str(group["embedding_dim"]),
        f"{group['parameters']:,}",
        f"{group['bundle_bytes'] / 2**20:.2f}",
        f"{group['epoch_seconds']:.2f}",
        f"{group['rank_seconds']:.3f}",
    ]


def _draw(found: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Draw recall against the bundle's size."""
    figure, panel = pyplot().subplots(figsize=(9, 5), layout="constrained")
    for number, (name, group) in enumerate(found.items()):
        recall = group["test"][METRICS[0]]
        panel.errorbar(
            group["bundle_bytes"] / 2**20,
            recall["mean"],
            yerr=recall["spread"],
            marker=_MARKERS[number % len(_MARKERS)],
            capsize=3,
            elinewidth=1,
            linestyle="none",
            label=name,
        )
    panel.set_xscale("log")
    panel.set_xlabel("bundle, MiB")
    panel.set_ylabel(f"test {METRICS[0]}: mean and spread of the seeds")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    save(figure, path)
