"""What is told of a run beside its checkpoints and result: who records it, and what they are told at its end."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffmm_dist import storage
from diffmm_dist.config.render import flatten
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData
from diffmm_dist.errors import TakenOverError, UserError
from diffmm_dist.models.base import Recommender
from diffmm_dist.monitoring.jsonl import JsonlRecorder
from diffmm_dist.monitoring.log import logger
from diffmm_dist.monitoring.recorder import MultiRecorder, Recorder
from diffmm_dist.monitoring.remote import RemoteRecorder
from diffmm_dist.parallel.collectives import CONTROL, agree, all_reduce_sum_, gather_rows, worker_counts
from diffmm_dist.runs.config import Config, MonitoringConfig
from diffmm_dist.runs.run_folder import RESUMABLE_SECTIONS, RunFolder
from diffmm_dist.runs.run_records import Result
from diffmm_dist.training.generated import figure_of

MOST_EMBEDDINGS = 10_000  # more are too many for the projector of TensorBoard, which runs in a browser
_DIRECTIONS = 3  # the projector shows so many at once


def recorder_of(
    folder: RunFolder, config: Config, recorders: Sequence[Recorder], *, start_epoch: int, is_first: bool
) -> Recorder:
    """Return what a worker records with: the first one into the run folder too, and wherever the settings say.

    Args:
        folder: the run's, which the first worker has.
        config: the run.
        recorders: further ones.
        start_epoch: first epoch that will be recorded.
        is_first: whether this is the first worker.
    """
    own = _own_recorders(folder, config, start_epoch) if is_first else []
    recorder = MultiRecorder([*own, *recorders])
    recorder.begin(flatten(config))
    return recorder


def _own_recorders(folder: RunFolder, config: Config, start_epoch: int) -> list[Recorder]:
    remote = _remote_recorders(folder, config, start_epoch)  # first, since the rest writes into the run folder
    recorders: list[Recorder] = [
        JsonlRecorder(folder.metrics, run=folder.run, start_epoch=start_epoch, writer=folder.writer)
    ]
    if config.monitoring.tensorboard:
        from diffmm_dist.monitoring.tensorboard import TensorBoardRecorder

        tags = dict.fromkeys(tag for record in folder.records() for tag in record if tag not in ("epoch", "writer"))
        recorders.append(
            TensorBoardRecorder(
                folder.tensorboard,
                start_epoch=start_epoch,
                earlier=folder.event_files(),
                tags=tags,
                unlisted=RESUMABLE_SECTIONS,
            )
        )
    return [*recorders, *remote, _Publisher(folder)]


def _remote_recorders(folder: RunFolder, config: Config, start_epoch: int) -> list[Recorder]:
    """Return the recorders that ask servers: before a run has begun they must answer."""
    name = folder.uri.rpartition("/")[2]
    recorders: list[Recorder] = []
    uri, project = config.monitoring.mlflow, config.monitoring.wandb
    if uri is not None:
        from diffmm_dist.monitoring.mlflow import MlflowRecorder

        opened = partial(MlflowRecorder, uri, run=folder.run, name=name)
        is_server = not uri.startswith("sqlite:")
        recorders.append(RemoteRecorder("monitoring.mlflow", opened, at_once=start_epoch == 0, is_server=is_server))
    if project is not None:
        from diffmm_dist.monitoring.wandb import WandbRecorder

        own = Path(tempfile.gettempdir()) if storage.is_remote(folder.uri) else folder.local
        keep = partial(WandbRecorder, project, run=folder.run, name=name, folder=own)
        try:
            recorders.append(RemoteRecorder("monitoring.wandb", keep, at_once=start_epoch == 0))
        except UserError:
            for recorder in recorders:  # what was told of the run stays behind as one that has ended
                recorder.close()
            raise
    return recorders


def check_packages(monitoring: MonitoringConfig) -> None:
    """Raise a ``UserError`` where a recorder is asked for whose package is not installed."""
    for name in ("mlflow", "wandb"):
        if getattr(monitoring, name) is not None and importlib.util.find_spec(name) is None:
            raise UserError(
                f"monitoring.{name} needs {name}: install it with pip install 'diffmm-dist[{name}]', or leave it out"
            )


class _Publisher(Recorder):
    """Brings to the run folder what the recorders before it have written."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Upload this epoch's records."""
        self._folder.publish()

    def close(self) -> None:
        """Upload the last ones, unless they are no longer this process's to write."""
        with contextlib.suppress(TakenOverError):
            self._folder.publish()


def record_end(
    recorder: Recorder, config: Config, result: Result, model: Recommender, dataset: Dataset, data: TrainingData
) -> None:
    """Record the final figures, generated graphs and, for TensorBoard, embeddings of items; every worker calls it.

    Args:
        recorder: this worker's.
        config: the run.
        result: of the run.
        model: as of its best epoch.
        dataset: what it was trained on.
        data: this worker's slice of it.
    """
    figures = {f"test/{name}": value for name, value in result["test"].items()}
    figures |= {f"valid/{name}": value for name, value in result["valid"].items()}
    figures["time/epoch_s"] = result["seconds_per_epoch"]
    if config.monitoring.tensorboard:
        _record_items(recorder, model, dataset, data)
    _record_graphs(recorder, model, data, epoch=result["best_epoch"])
    recorder.end(figures, epoch=result["best_epoch"])


def _record_graphs(recorder: Recorder, model: Recommender, data: TrainingData, *, epoch: int) -> None:
    """Record a picture of the graphs that the model has generated, if it generates some."""
    is_first = data.shard.world.is_first
    try:
        picture = figure_of(model, data)
    except UserError as error:  # what draws it is not installed, and all else is recorded
        if is_first:
            logger.warning("no picture of the generated graphs is recorded: %s", error)
        return
    if picture is not None and is_first:
        recorder.figure("graphs/generated", picture, epoch=epoch)


def _record_items(recorder: Recorder, model: Recommender, dataset: Dataset, data: TrainingData) -> None:
    """Record the embeddings of the items with the most training interactions, with their ids and how many these are."""
    shard, item_ids = data.shard, data.shard.own_item_ids
    world = shard.world
    counts = torch.bincount(data.interactions.indices, minlength=shard.num_items)
    counts = all_reduce_sum_(counts, world, purpose=CONTROL)
    is_chosen = torch.zeros(shard.num_items, dtype=torch.bool, device=world.device)
    is_chosen[torch.argsort(counts, descending=True, stable=True)[:MOST_EMBEDDINGS]] = True
    mine = is_chosen[item_ids]
    vectors = model.embeddings()[1].detach()[mine].float().contiguous()
    if vectors.shape[1] < _DIRECTIONS:
        return
    sizes = worker_counts(len(vectors), world)
    ids = gather_rows(item_ids[mine], sizes, world, purpose=CONTROL)
    vectors = gather_rows(vectors, sizes, world, purpose=CONTROL)
    names = agree(lambda: _original_ids(dataset, shard.item_rows[ids]) if world.is_first else [], world)
    if world.is_first:
        labels = {"item": names, "training interactions": [str(count) for count in counts[ids].tolist()]}
        recorder.embeddings("items", vectors.cpu().numpy(), labels)


def _original_ids(dataset: Dataset, rows: torch.Tensor) -> list[str]:
    names: list[Any] = dataset.original_ids("items").take(rows.cpu().numpy()).to_pylist()
    return [str(name) for name in names]
