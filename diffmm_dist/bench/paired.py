"""Runs compared user by user: is one better for the same users, beyond what chance among them would give?"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import wilcoxon

from diffmm_dist import storage
from diffmm_dist.bench.machine import command
from diffmm_dist.data.schema import Split
from diffmm_dist.data.training import shard_interactions
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation.evaluator import rank_items
from diffmm_dist.evaluation.metrics import NAMES, MetricSums
from diffmm_dist.monitoring.log import print_table
from diffmm_dist.training.trained import TrainedRun, load_trained

Masked = Literal["seen", "train"]
MASKED: dict[Masked, tuple[Split, ...]] = {"seen": ("train", "valid"), "train": ("train",)}
METRICS = ("recall", "ndcg")
_RESAMPLES = 10_000
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
    found = {}
    for index, metric in enumerate(METRICS):
        per_run = [values[:, index].mean(axis=1) for values in of_runs]
        difference = of_runs[0][:, index].mean(axis=0) - of_runs[1][:, index].mean(axis=0)
        low, high = _interval(difference)
        found[metric] = {
            "first": {"mean": float(per_run[0].mean()), "values": per_run[0].tolist()},
            "second": {"mean": float(per_run[1].mean()), "values": per_run[1].tolist()},
            "difference": float(difference.mean()),
            "low": low,
            "high": high,
            "p": float(wilcoxon(difference, zero_method="zsplit").pvalue) if difference.any() else 1.0,
            "users": len(difference),
        }
    return found


def user_metrics(run: TrainedRun, masked: Sequence[Split], k: int) -> Floats:
    """Return recall and ndcg at k of every user with test items, in the order of their ids, (2, users)."""
    shard = run.data.shard
    users, items = run.model.embeddings()
    truth = shard_interactions(run.dataset, "test", shard)
    hidden = [shard_interactions(run.dataset, split, shard) for split in masked]
    rows = torch.nonzero(truth.row_counts).flatten()
    rows = rows[torch.argsort(shard.user_ids[rows])]
    sums = MetricSums([k], num_items=shard.num_items, device=users.device)
    chosen = [NAMES.index(metric) for metric in METRICS]
    found = [
        sums.per_user(lists, truth.select(block))[0][:, chosen].T
        for block, _, lists in rank_items(users, items[shard.item_rows], rows, masked=hidden, k=k, batch_size=1024)
    ]
    values: Floats = torch.cat(found, dim=1).numpy()
    return values


def _interval(differences: Floats) -> tuple[float, float]:
    """Return between what the mean difference lies in 95 % of resamples of the users."""
    random = np.random.default_rng(0)
    means = [random.choice(differences, len(differences)).mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
