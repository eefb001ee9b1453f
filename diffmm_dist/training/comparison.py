"""Runs side by side: their test figures, what tells them apart, and why a figure is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffmm_dist.data.schema import Split
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.evaluation.resampling import FEWER, Interval, mean_intervals
from diffmm_dist.monitoring.log import metric_cells
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.naming import differing_settings, run_names, setting_words
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.runs.run_records import Result
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.user_figures import Measure

AGREES = 1e-4  # by so much at most do figures of one model differ between kernels and numbers of workers
_TEST: Split = "test"


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        columns: names of the columns.
        rows: a row for each run.
        notes: where each run is and in what it differs from the others, and why figures are missing.
        records: the rows for machines: numbers, by name, null where there is none.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    records: list[dict[str, Any]]


def compare_runs(paths: Sequence[str], *, k: int) -> Comparison:
    """Compare the test figures of runs at a cut-off, each with the interval that resamples of its users give.

    Args:
        paths: their folders; one that has not finished shows no figures, and one that cannot be loaded no intervals.
        k: the cut-off.

    Raises:
        UserError: one is no run, or none has finished.
    """
    folders = [RunFolder.existing(path) for path in dict.fromkeys(paths)]
    results = [folder.result() for folder in folders]
    if not any(results):
        which = ", ".join(folder.uri for folder in folders)
        raise UserError(f"run {which} has not finished; run its `train` command again")
    of_users, others = [f"recall@{k}", f"ndcg@{k}"], [f"coverage@{k}"]
    configs = [folder.config() for folder in folders]
    labels = run_names(configs, [folder.uri for folder in folders])
    rows, records, missing = [], [], []
    for folder, config, result, label in zip(folders, configs, results, labels, strict=True):
        found, reasons = _intervals(folder.uri, result, of_users)
        figures = result["test"] if result else {}
        cells = [label, *_cells(figures, found, of_users), *metric_cells(figures, others)]
        rows.append([*cells, *_run_cells(config, result)])
        records.append(_record(folder, config, result, [*of_users, *others], found))
        reasons.insert(0, _missing(config, result, folder.uri, [*of_users, *others], k))
        missing += [f"{folder.uri}: {reason}" for reason in reasons if reason]
    columns = ["run", *of_users, *others, "best epoch", "s/epoch", "protocol"]
    return Comparison(columns, rows, [*_differences(folders, configs, labels), *missing], records)


def _intervals(uri: str, result: Result | None, names: Sequence[str]) -> tuple[dict[str, Interval], list[str]]:
    """Return intervals of a run's figures, by name, and a sentence for what is wrong with them."""
    wanted = [name for name in names if result is not None and name in result["test"]]
    if result is None or not wanted:
        return {}, []
    try:
        run = load_trained(uri)
        found = intervals_of(Measure.by_protocol(run, _TEST, [int(wanted[0].partition("@")[2])]).of_run(run).metrics)
    except UserError as error:
        return {}, [f"no interval, since it cannot be measured again: {one_line(error)}"]
    differ = [name for name in wanted if not agrees(found[name].mean, result["test"][name])]
    return found, [f"measured now, {name} is {found[name].mean:.4f}" for name in differ]


def intervals_of(metrics: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Return the mean of each metric with its interval."""
    return dict(zip(metrics, mean_intervals(np.stack(list(metrics.values())), resamples=FEWER), strict=True))


def agrees(measured: float, written: float) -> bool:
    """Return whether a figure is the one that a run's result has, but for rounding."""
    return abs(measured - written) <= AGREES


def _cells(figures: Mapping[str, float], found: Mapping[str, Interval], names: Sequence[str]) -> list[str]:
    cells = metric_cells(figures, names)
    between = [f" ({found[name].low:.4f} to {found[name].high:.4f})" if name in found else "" for name in names]
    return [f"{cell}{more}" for cell, more in zip(cells, between, strict=True)]


def _run_cells(config: Config, result: Result | None) -> list[str]:
    if result is None:
        return ["-", "-", config.eval.protocol]
    return [str(result["best_epoch"]), f"{result['seconds_per_epoch']:.2f}", result["protocol"]]


def _record(
    folder: RunFolder, config: Config, result: Result | None, names: Sequence[str], found: Mapping[str, Interval]
) -> dict[str, Any]:
    test = result["test"] if result else {}
    ended = {
        "best_epoch": result["best_epoch"] if result else None,
        "seconds_per_epoch": result["seconds_per_epoch"] if result else None,
    }
    figures = {name: test.get(name) for name in names}
    between = {f"{name} interval": [found[name].low, found[name].high] if name in found else None for name in names[:2]}
    return {
        "run": folder.uri,
        "model": config.model.name,
        **figures,
        **between,
        **ended,
        "protocol": config.eval.protocol,
    }


def _differences(folders: Sequence[RunFolder], configs: Sequence[Config], labels: Sequence[str]) -> list[str]:
    """Return a line per run with its folder and the settings in which the runs differ."""
    differing = [setting_words(settings) for settings in differing_settings(configs)]
    lines = [
        f"{label}: {folder.uri}{'; ' if settings else ''}{settings}"
        for label, folder, settings in zip(labels, folders, differing, strict=True)
    ]
    return lines if any(differing) or len(folders) == 1 else [*lines, "all settings are the same"]


def _missing(config: Config, result: Result | None, uri: str, names: list[str], k: int) -> str:
    """Return why figures of a run are missing, or nothing where none is."""
    if result is None:
        return "it has not finished; run its `train` command again"
    if not result["test"]:
        return f"its dataset {config.data.path} has no test interactions"
    if all(name in result["test"] for name in names):
        return ""
    measured = sorted({int(name.partition("@")[2]) for name in result["test"]})
    if k not in measured:
        cutoffs = ", ".join(map(str, measured))
        return f"measured at {cutoffs} only (its eval.k); `evaluate {uri} --k {k}` measures it at {k}"
    return "it was measured by a version that knew fewer metrics; `evaluate` measures it again"
