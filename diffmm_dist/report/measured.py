"""What a report says of runs, measured: figures with intervals, groups of users and items, generated graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffmm_dist.data.schema import Split
from diffmm_dist.errors import UserError
from diffmm_dist.evaluation.resampling import Interval
from diffmm_dist.evaluation.users import UserFigures
from diffmm_dist.monitoring.jsonl import lost_epochs
from diffmm_dist.monitoring.log import logger
from diffmm_dist.report.graphs import ShownGraph, shown_graphs
from diffmm_dist.report.groups import Floats, Groups, Ints, item_groups, mean_of_users, recall_of_items, user_groups
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.runs.run_records import Identity, Result
from diffmm_dist.training.comparison import agrees, intervals_of
from diffmm_dist.training.trained import TrainedRun, load_trained
from diffmm_dist.training.user_figures import Measure

SPLITS: tuple[Split, ...] = ("valid", "test")


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder says, before anything large of it is read.

    Attributes:
        uri: the folder.
        config: as the user wrote it.
        result: what it has come to.
        identity: what it was started with.
        records: of every epoch.
        num_lost: epochs of which metrics.jsonl has none.
    """

    uri: str
    config: Config
    result: Result
    identity: Identity
    records: Sequence[dict[str, Any]]
    num_lost: int = 0


def read_finished(uri: str) -> FinishedRun:
    """Read a run folder.

    Raises:
        UserError: there is no run, or it has not finished.
        DamagedError: a file of it is not what the run has written.
    """
    folder = RunFolder.existing(uri)
    result = folder.result()
    if result is None:
        raise UserError(f"run {uri} has not finished; run its `train` command again")
    folder.fetch_records()
    lost = lost_epochs(folder.metrics, run=folder.run, before=result["epochs"])
    if lost:
        logger.warning("metrics.jsonl of %s has lost the records of %d epochs, so the curves lack them", uri, len(lost))
    return FinishedRun(uri, folder.config(), result, folder.identity(), folder.records(), len(lost))


@dataclass(frozen=True)
class Figures:
    """How good lists are.

    Attributes:
        of_split: of each split and metric, such as ``recall@20``, its mean over users and the interval of that.
        coverage: of each split, such as ``coverage@20``.
        per_user: of the split that is shown in detail, recall and ndcg at the cut-off of each user, (2, N).
        by_activity: recall of each group of users.
        by_taken: recall of each group of items.
    """

    of_split: dict[Split, dict[str, Interval]]
    coverage: dict[Split, dict[str, float]]
    per_user: Floats
    by_activity: Sequence[Interval]
    by_taken: Sequence[float]


@dataclass(frozen=True)
class Measured:
    """A run with all that was measured of it.

    Attributes:
        run: the run.
        counts: rows of each axis of its dataset, and interactions of each split.
        modalities: of its dataset.
        figures: of its best epoch.
        graphs: what it has generated.
        disagreements: figures that are not those of its result, a sentence each.
    """

    run: FinishedRun
    counts: dict[str, int]
    modalities: Sequence[str]
    figures: Figures
    graphs: Sequence[ShownGraph]
    disagreements: Sequence[str]


@dataclass(frozen=True)
class Setting:
    """What all runs of a report are measured against.

    Attributes:
        k: the cut-off of what is shown in detail.
        split: the split of that.
        users: groups of its users.
        items: groups of its items.
        most_taken: figures of one list for all: what most users took.
    """

    k: int
    split: Split
    users: Groups
    items: Groups
    most_taken: Figures


class Measuring:
    """Measures the runs of a report, one after the other; the first one says what all are measured against.

    Args:
        k: the cut-off of what is shown in detail.
        ks: all cut-offs, this one among them.
        user: original id of the user whose neighbourhood is drawn; None takes a typical one.
    """

    def __init__(self, *, k: int, ks: Sequence[int], user: str | None) -> None:
        self._k, self._ks, self._user = k, ks, user
        self.setting: Setting | None = None

    def measure(self, run: FinishedRun) -> Measured:
        """Load a run and measure it.

        Raises:
            UserError: its dataset or a checkpoint is gone, or it has no such user.
        """
        trained = load_trained(run.uri)
        counts = dict(trained.dataset.manifest.counts)
        counts |= {split: trained.dataset.manifest.num_interactions(split) for split in ("train", *SPLITS)}
        splits = [split for split in SPLITS if counts[split]]
        measures = {split: Measure.by_protocol(trained, split, self._ks) for split in splits}
        shown = splits[-1]
        if self.setting is None:
            self.setting = self._setting(trained, measures, shown)
        found = {split: measure.of_run(trained) for split, measure in measures.items()}
        figures = self._figures(trained, found, self.setting.users, self.setting.items, shown)
        wanted = measures[shown].truth.row_counts > 0
        graphs = shown_graphs(trained, user=self._user, among=wanted, truth=measures[shown].truth, split=shown)
        modalities = list(trained.dataset.manifest.modalities)
        return Measured(run, counts, modalities, figures, graphs, _disagreements(run.result, figures))

    def _setting(self, trained: TrainedRun, measures: dict[Split, Measure], shown: Split) -> Setting:
        found = {split: measure.of_most_taken(trained) for split, measure in measures.items()}
        to_find: Ints = measures[shown].truth.row_counts.cpu().numpy()[found[shown].rows]
        users = user_groups(_activity(trained, found[shown]), to_find)
        items = item_groups(_taken(trained), found[shown].truths)
        return Setting(self._k, shown, users, items, self._figures(trained, found, users, items, shown))

    def _figures(
        self, trained: TrainedRun, found: dict[Split, UserFigures], users: Groups, items: Groups, shown: Split
    ) -> Figures:
        detail = found[shown]
        recall, ndcg = (detail.metrics[f"{name}@{self._k}"] for name in ("recall", "ndcg"))
        return Figures(
            {split: intervals_of(one.metrics) for split, one in found.items()},
            {split: one.coverage for split, one in found.items()},
            np.stack([recall, ndcg]),
            mean_of_users(users, _activity(trained, detail), recall),
            recall_of_items(items, _taken(trained), detail.hits[self._k]),
        )


def _activity(trained: TrainedRun, found: UserFigures) -> Ints:
    """Return the training interactions of each user with something to be found."""
    counts: Ints = trained.data.interactions.row_counts.cpu().numpy()[found.rows]
    return counts


def _taken(trained: TrainedRun) -> Ints:
    """Return the training interactions of each item, by id."""
    counts: Ints = trained.data.interactions.column_counts.cpu().numpy()
    return counts


def _disagreements(result: Result, figures: Figures) -> list[str]:
    """Return a sentence for each figure that is not the one that the run has written."""
    said = []
    both: dict[Split, dict[str, float]] = {"valid": result["valid"], "test": result["test"]}
    for split, written in both.items():
        measured = {name: one.mean for name, one in figures.of_split.get(split, {}).items()}
        measured |= figures.coverage.get(split, {})
        said += [
            f"{split} {name} is {measured[name]:.4f} when measured now and {value:.4f} in result.json"
            for name, value in written.items()
            if name in measured and not agrees(measured[name], value)
        ]
    return said
