"""Runs side by side: their test figures, what tells them apart, and why a figure is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffmm_dist.config.render import flatten
from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import metric_cells
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.runs.run_records import Result
from diffmm_dist.words import shown


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        columns: names of the columns.
        rows: a row for each run.
        notes: in what each run differs from the others, and why figures are missing.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def compare_runs(paths: Sequence[str], *, k: int) -> Comparison:
    """Compare the test figures of runs at a cut-off.

    Args:
        paths: their folders; one that has not finished shows no figures.
        k: the cut-off.

    Raises:
        UserError: one is no run, or none has finished.
    """
    folders = [RunFolder.existing(path) for path in dict.fromkeys(paths)]
    results = [folder.result() for folder in folders]
    if not any(results):
        which = ", ".join(folder.uri for folder in folders)
        raise UserError(f"run {which} has not finished; run its `train` command again")
    names = [f"recall@{k}", f"ndcg@{k}", f"coverage@{k}"]
    configs = [folder.config() for folder in folders]
    rows = [_row(*run, names) for run in zip(folders, configs, results, strict=True)]
    notes = _differences(folders, configs)
    for folder, config, result in zip(folders, configs, results, strict=True):
        reason = _missing(config, result, folder.uri, names, k)
        notes += [f"{folder.uri}: {reason}"] if reason else []
    return Comparison(["run", "model", *names, "best epoch", "s/epoch", "protocol"], rows, notes)


def _row(folder: RunFolder, config: Config, result: Result | None, names: list[str]) -> list[str]:
    cells = [folder.uri, config.model.name, *metric_cells(result["test"] if result else {}, names)]
    if result is None:
        return [*cells, "-", "-", config.eval.protocol]
    return [*cells, str(result["best_epoch"]), f"{result['seconds_per_epoch']:.2f}", result["protocol"]]


def _differences(folders: Sequence[RunFolder], configs: Sequence[Config]) -> list[str]:
    """Return a line per run with the settings in which the runs differ, but for their folders."""
    settings = [flatten(config) for config in configs]
    every = dict.fromkeys(key for one in settings for key in one if key != "run.path")
    keys = [key for key in every if any(one.get(key) != settings[0].get(key) for one in settings)]
    if not keys:
        return ["all settings are the same"] if len(folders) > 1 else []
    return [
        f"{folder.uri}: {', '.join(f'{key}={_plain(one[key])}' for key in keys if key in one)}"
        for folder, one in zip(folders, settings, strict=True)
    ]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else shown(value)


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
