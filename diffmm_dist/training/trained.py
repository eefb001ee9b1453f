"""A finished or running run, read back: its model as of the best epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.models.base import Recommender
from diffmm_dist.models.recipe import Recipe
from diffmm_dist.parallel.collectives import agree
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.checkpoint import Checkpoints
from diffmm_dist.runs.checkpoint_shards import OwnerOf
from diffmm_dist.runs.config import Config, GraphConfig
from diffmm_dist.runs.progress import Best, Cursor, Progress
from diffmm_dist.runs.run_folder import RESULT, RunFolder
from diffmm_dist.training.build import build_evaluation, build_recipe, choose_device, load_training_data, open_dataset
from diffmm_dist.training.clip import clipped
from diffmm_dist.training.selection import Evaluation
from diffmm_dist.training.state import TrainState, is_of_model, load_model


@dataclass(frozen=True)
class TrainedRun:
    """A run's best model and what it was trained with.

    Attributes:
        config: the run's configuration.
        dataset: its dataset.
        data: its training data.
        model: the model as of the best epoch so far.
        best_epoch: which, of the last stage.
        world: where the model is.
    """

    config: Config
    dataset: Dataset
    data: TrainingData
    model: Recommender
    best_epoch: int
    world: World

    def evaluation(self, ks: Sequence[int], *, retrieved_ndcg: bool = False) -> Evaluation:
        """Return the evaluation under the run's protocol, at these cut-offs; with retrieved NDCG if asked or set."""
        config, _ = clipped(self.config, self.dataset.manifest)
        return build_evaluation(config, self.dataset, self.data, ks=ks, retrieved_ndcg=retrieved_ndcg)

    def figures(
        self, split: Literal["valid", "test"], ks: Sequence[int], *, retrieved_ndcg: bool = False
    ) -> dict[str, float]:
        """Return the figures of the best epoch on a split; the other arguments are those of ``evaluation``.

        Raises:
            UserError: there is nothing to evaluate on.
        """
        found = self.evaluation(ks, retrieved_ndcg=retrieved_ndcg).measure(self.model, split)
        if not found:
            raise UserError(f"dataset {self.dataset.uri} has no {split} interactions to evaluate on")
        return found


@dataclass(frozen=True)
class SavedRun:
    """A run and its best epoch so far, before anything large of it is read.

    Attributes:
        folder: the run's.
        config: its configuration.
        checkpoints: its checkpoints, as the workers read them that load it.
        best: its best epoch, of the stage that it has come to.
        stage: the index of that.
    """

    folder: RunFolder
    config: Config
    checkpoints: Checkpoints
    best: Best
    stage: int

    @classmethod
    def open(cls, run_path: str, world: World) -> "SavedRun":
        """Find the best epoch of a run; every worker calls it at the same time.

        Raises:
            UserError: there is no such run, or it has no best epoch yet.
            DamagedError: its checkpoints do not know the best epoch of its result.
        """
        folder = agree(lambda: RunFolder.existing(run_path), world)
        config = agree(folder.config, world)
        run = agree(lambda: folder.run, world)
        checkpoints = Checkpoints(folder.checkpoints, run=run, keep=config.checkpoint.keep, world=world)
        newest = checkpoints.newest(lambda checkpoint: checkpoint.progress)
        best, stage = agree(lambda: _best_epoch(folder, newest), world)
        return cls(folder, config, checkpoints, best, stage)

    def model(self, dataset: Dataset, data: TrainingData) -> Recommender:
        """Return the model as of the best epoch, with this worker's rows; every worker calls it at the same time.

        Args:
            dataset: what the run was trained on.
            data: this worker's slice of it.

        Raises:
            UserError: the run has not come to its last stage.
            DamagedError: the checkpoint of its best epoch is damaged.
        """
        world = data.shard.world
        anywhere = clipped(self.config, dataset.manifest)[0].model_copy(
            update={"graph": GraphConfig(kernel="csr")}
        )  # they agree but for rounding
        recipe = build_recipe(anywhere, data, device=world.device)
        model, last = recipe.model, recipe.stages[-1].name
        agree(lambda: self._check_is_last(recipe), world)
        model.stage = last
        owner_of = TrainState(recipe, world).owner_of
        load_model(model, agree(lambda: self._of_model(owner_of), world))
        return model

    def _check_is_last(self, recipe: Recipe) -> None:
        if self.stage != len(recipe.stages) - 1:
            raise UserError(
                f"run {self.folder.uri} has not come to its last stage, '{recipe.stages[-1].name}', of which the best "
                "epoch is wanted; let `train` go on until it has evaluated an epoch of that"
            )

    def _of_model(self, owner_of: OwnerOf) -> dict[str, Tensor]:
        return self.checkpoints.open(self.best.checkpoint).tensors(owner_of, wanted=is_of_model)


def load_trained(run_path: str) -> TrainedRun:
    """Load the best model of a run.

    Raises:
        UserError: there is no such run, it has no best epoch yet, or its dataset is gone or changed.
        DamagedError: the checkpoint of its best epoch is damaged.
    """
    saved = SavedRun.open(run_path, World.single())
    config = saved.config
    dataset = open_dataset(config)
    if dataset.manifest.fingerprint != saved.folder.identity()["dataset"]:
        raise UserError(f"dataset {config.data.path} is not the one that run {run_path} was trained on; restore it")
    world = World.single(choose_device(config.cluster.device))
    data = load_training_data(config, dataset, world)
    return TrainedRun(config, dataset, data, saved.model(dataset, data), saved.best.epoch, world)


def _best_epoch(folder: RunFolder, newest: tuple[str, Progress] | None) -> tuple[Best, int]:
    """Return the best epoch by the newest checkpoint that can be read, and the index of its stage.

    It must be that of the run's result.
    """
    progress = Progress(Cursor(), None, {}, {}, {}) if newest is None else newest[1]
    best, done = progress.best, progress.cursor.epoch
    known, result = None if best is None else best.epoch, folder.result()
    if result is not None and done <= result["epochs"] and known != result["best_epoch"]:
        name = "there is none" if newest is None else newest[0]
        raise DamagedError(
            f"the best epoch of run {folder.uri} is {result['best_epoch']} by its {RESULT}, which its newest good "
            f"checkpoint ({name}) does not know; restore the checkpoints, or remove {RESULT} and train on"
        )
    if best is None:
        stage = " of its present stage" if progress.ended else ""
        raise UserError(f"run {folder.uri} has not evaluated an epoch{stage} yet; let `train` go on until it has")
    return best, progress.cursor.stage
