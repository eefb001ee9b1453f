"""Runs compared user by user: is one better for the same users, beyond what chance among them would give?"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from diffmm_dist import storage
from diffmm_dist.bench.machine import command
from diffmm_dist.data.schema import Split
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation.resampling import paired
from diffmm_dist.monitoring.log import print_table
from diffmm_dist.training.trained import TrainedRun, load_trained
from diffmm_dist.training.user_figures import Measure

Masked = Literal["seen", "train"]
MASKED: dict[Masked, tuple[Split, ...]] = {"seen": ("train", "valid"), "train": ("train",)}
METRICS = ("recall", "ndcg")
Floats = npt.NDArray[np.float64]


def bench_paired(first: Sequence[str], second: Sequence[str], *, k: int, out: str) -> None:
    """Compare the test figures of two groups of runs at a cut-off, user by user, and write a JSON file.

    Of each user the mean over a group's runs counts. Figures come with training and validation items masked, as
    `train` measures them, and with training items alone masked, as published programs do.

    Args:
        first: run folders.
        second: run folders, of the same dataset.
        k: the cut-off.
        out: the JSON file.

    Raises:
        UserError: a run cannot be read, or they are of different datasets.
    """
    groups = [[load_trained(run) for run in runs] for runs in (first, second)]
    datasets = {run.dataset.manifest.fingerprint for runs in groups for run in runs}
    if len(datasets) != 1:
        raise UserError("the runs are not of one dataset, so their users cannot be compared; name others")
    masked = {name: _compare(groups, splits, k) for name, splits in MASKED.items()}
    storage.write_json(out, {"command": command(), "first": list(first), "second": list(second), "masked": masked})
    rows = [
        [f"{metric}@{k}, {name} masked", *(f"{found[group]['mean']:.4f}" for group in ("first", "second")),
         f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})", f"{found['p']:.2g}"]
        for name, metrics in masked.items() for metric, found in metrics.items()
    ]  # fmt: skip
    print_table("", ["", "first", "second", "first - second (95 % of resamples)", "Wilcoxon p"], rows)


def _compare(groups: Sequence[Sequence[TrainedRun]], splits: Sequence[Split], k: int) -> dict[str, dict[str, Any]]:
    """Return each metric's figures of both groups, their difference, its interval and its p value."""
    of_runs = [np.stack([user_metrics(run, splits, k) for run in runs]) for runs in groups]
    differences = of_runs[0].mean(axis=0) - of_runs[1].mean(axis=0)
    found = {}
    for index, (metric, test) in enumerate(zip(METRICS, paired(differences), strict=True)):
        per_run = [values[:, index].mean(axis=1) for values in of_runs]
        found[metric] = {
            "first": {"mean": float(per_run[0].mean()), "values": per_run[0].tolist()},
            "second": {"mean": float(per_run[1].mean()), "values": per_run[1].tolist()},
            **test._asdict(),
            "users": differences.shape[1],
        }
    return found


def user_metrics(run: TrainedRun, masked: Sequence[Split], k: int) -> Floats:
    """Return recall and ndcg at k of every user with test items, in the order of their ids, (2, users)."""
    figures = Measure.of(run, "test", [k], masked=masked).of_run(run)
    return np.stack([figures.metrics[f"{metric}@{k}"] for metric in METRICS])
