"""What a run says when it has ended: the figures of each stage's best epoch, and what they have cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from diffmm_dist.errors import DamagedError, StoppedError
from diffmm_dist.monitoring.timing import peak_rss_gib
from diffmm_dist.parallel.collectives import all_reduce_max, any_worker
from diffmm_dist.runs.checkpoint import Checkpoints
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.progress import Best
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.runs.run_records import Result, StageResult
from diffmm_dist.training.restore import load_best, read_best
from diffmm_dist.training.selection import Evaluation
from diffmm_dist.training.state import TrainState, load_model

_Records = Sequence[dict[str, Any]]


def has_finished(result: Result, config: Config) -> bool:
    """Return whether a run that has ended with a result has nothing more to do under a configuration."""
    before = result["config"].get("train", {})
    epochs = before.get("epochs")
    return isinstance(epochs, int) and epochs >= config.train.epochs and before.get("patience") == config.train.patience


def conclude(
    state: TrainState,
    checkpoints: Checkpoints,
    evaluation: Evaluation,
    folder: RunFolder,
    config: Config,
    stop_requested: Callable[[], bool],
) -> Result:
    """Measure the best epochs and summarise the run; all that it needs is saved already."""
    records = folder.records()
    measure = _Measuring(state, evaluation, records, stop_requested)
    stages = []
    for ended in state.ended:
        read = read_best(state, checkpoints, ended.best)
        if isinstance(read, DamagedError):
            state.note(f"the checkpoint {ended.best.checkpoint} of the best epoch of stage '{ended.name}' was lost")
        else:
            state.model.stage = ended.name
            load_model(state.model, read)
        stages.append(measure(ended.name, ended.best, ended.epochs, can_measure=not isinstance(read, DamagedError)))
    assert state.best is not None
    state.model.stage = state.stage.name
    load_best(state, checkpoints, state.best)
    last = measure(state.stage.name, state.best, state.epochs_of_stage)
    peak = all_reduce_max(peak_rss_gib(), state.world)
    times = {tag for record in records for tag in record if tag.startswith("time/")} - {"time/epoch_s"}
    result: Result = {
        "run": folder.run,
        "protocol": config.eval.protocol,
        "seed": config.run.seed,
        "best_epoch": state.best.epoch,
        "epochs": state.cursor.epoch,
        "valid": last["valid"],
        "test": last["test"],
        "seconds_per_epoch": _median(records, "time/epoch_s"),
        "seconds_per_phase": {tag[5:-2]: _median(records, tag) for tag in sorted(times)},
        "peak_rss_gib": max([peak, *_values(records, "mem/peak_gib")]),
        "notes": state.notes,
        "config": config.model_dump(mode="json"),
    }
    return result if not stages else {**result, "stages": [*stages, last]}


@dataclass
class _Measuring:
    """Measures stages, the first one first.

    Attributes:
        start: the first epoch of the next one.
    """

    state: TrainState
    evaluation: Evaluation
    records: _Records
    stop_requested: Callable[[], bool]
    start: int = 0

    def __call__(self, name: str, best: Best, epochs: int, *, can_measure: bool = True) -> StageResult:
        """Return the figures of a stage, with the model as of its best epoch where that can be measured."""
        start, self.start = self.start, self.start + epochs
        metrics = {self.evaluation.selection_split: best.metrics}
        for split in ("valid", "test") if can_measure else ():
            metrics[split] = metrics.get(split) or self.evaluation.measure(self.state.model, split, poll=self._poll)
        own = [record for record in self.records if start <= record["epoch"] < self.start]
        return {
            "name": name,
            "epochs": epochs,
            "best_epoch": best.epoch,
            "valid": metrics.get("valid", {}),
            "test": metrics.get("test", {}),
            "seconds_per_epoch": _median(own, "time/epoch_s"),
        }

    def _poll(self) -> None:
        if any_worker(self.stop_requested(), self.state.world):
            raise StoppedError("the final measurement")


def _median(records: _Records, tag: str) -> float:
    return float(median(_values(records, tag) or [0.0]))


def _values(records: _Records, tag: str) -> list[float]:
    """Return the values of a tag in all epochs that have measured it."""
    return [record[tag] for record in records if record.get(tag) is not None]
