"""A finished or running run, read back: its model as of the best epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.models.base import Recommender
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.checkpoint import Checkpoints
from diffmm_dist.runs.config import Config, GraphConfig
from diffmm_dist.runs.progress import Best, Cursor, Progress
from diffmm_dist.runs.run_folder import RESULT, RunFolder
from diffmm_dist.train.build import build_evaluation, build_recipe, choose_device, load_training_data, open_dataset
from diffmm_dist.train.clip import clipped
from diffmm_dist.train.selection import Evaluation
from diffmm_dist.train.state import is_of_model, load_model


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

    def evaluation(self, ks: Sequence[int]) -> Evaluation:
        """Return the evaluation under the run's protocol, at these cut-offs."""
        config, _ = clipped(self.config, self.dataset.manifest)
        return build_evaluation(config, self.dataset, self.data, ks=ks)


def load_trained(run_path: str) -> TrainedRun:
    """Load the best model of a run.

    Raises:
        UserError: there is no such run, it has no best epoch yet, or its dataset is gone or changed.
        DamagedError: the checkpoint of its best epoch is damaged.
    """
    folder = RunFolder.existing(run_path)
    config = folder.config()
    checkpoints = Checkpoints(folder.checkpoints, run=folder.run, keep=config.checkpoint.keep, world=World.single())
    best, stage = _best_epoch(folder, checkpoints)
    dataset = open_dataset(config)
    if dataset.manifest.fingerprint != folder.identity()["dataset"]:
        raise UserError(f"dataset {config.data.path} is not the one that run {run_path} was trained on; restore it")
    world = World.single(choose_device(config.cluster.device))
    data = load_training_data(config, dataset, world)
    anywhere = clipped(config, dataset.manifest)[0].model_copy(
        update={"graph": GraphConfig(kernel="csr")}
    )  # they agree but for rounding
    recipe = build_recipe(anywhere, data, device=world.device)
    model, last = recipe.model, recipe.stages[-1].name
    if stage != len(recipe.stages) - 1:
        raise UserError(
            f"run {run_path} has not come to its last stage, '{last}', of which the best epoch is wanted; let `train` "
            "go on until it has evaluated an epoch of that"
        )
    model.stage = last
    load_model(model, checkpoints.open(best.checkpoint).tensors(wanted=is_of_model))
    return TrainedRun(config, dataset, data, model, best.epoch, world)


def _best_epoch(folder: RunFolder, checkpoints: Checkpoints) -> tuple[Best, int]:
    """Return the best epoch by the newest checkpoint that can be read, and the index of its stage.

    It must be that of the run's result.
    """
    newest = checkpoints.newest(lambda checkpoint: checkpoint.progress)
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
