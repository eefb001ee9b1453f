"""Going on from the newest checkpoint that is not damaged, and saying what was lost on the way."""

from functools import partial

from torch import Tensor

from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.monitoring.jsonl import lost_epochs
from diffmm_dist.monitoring.log import logger
from diffmm_dist.parallel.collectives import agree
from diffmm_dist.runs.checkpoint import Checkpoints
from diffmm_dist.runs.progress import Best, Progress
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.training.state import TrainState, is_of_model, load_model


def restore(state: TrainState, checkpoints: Checkpoints, folder: RunFolder) -> None:
    """Go on from the newest good checkpoint, if there is one; every worker calls it at the same time.

    What is damaged is noted in the state, and so in the run's result.

    Raises:
        UserError: every checkpoint is damaged, one cannot be reached, or the stages are not those that the run had.
    """
    found = checkpoints.newest(lambda checkpoint: (checkpoint.progress, checkpoint.tensors(state.owner_of)))
    if found is not None:
        name, (progress, tensors) = found
        _check_stages(state, progress, folder)
        state.load_progress(progress)
        state.load_tensors(tensors)
        _note_damaged(state, checkpoints, name)
        _check_best(state, checkpoints, name)
        _say_where(state, folder, name)
    if state.world.is_first:
        _check_records(state, folder, has_checkpoint=found is not None)


def load_best(state: TrainState, checkpoints: Checkpoints, best: Best) -> None:
    """Load the model as of the best epoch of a stage; every worker calls it at the same time.

    Raises:
        DamagedError: the checkpoint is damaged.
    """
    load_model(state.model, agree(partial(_of_model, state, checkpoints, best), state.world))


def read_best(state: TrainState, checkpoints: Checkpoints, best: Best) -> dict[str, Tensor] | DamagedError:
    """Read the model as of the best epoch of a stage, or say what is damaged; all workers call it at the same time."""
    return checkpoints.unless_damaged(partial(_of_model, state, checkpoints, best))


def _of_model(state: TrainState, checkpoints: Checkpoints, best: Best) -> dict[str, Tensor]:
    return checkpoints.open(best.checkpoint).tensors(state.owner_of, wanted=is_of_model)


def _check_stages(state: TrainState, progress: Progress, folder: RunFolder) -> None:
    """Refuse to go on from stages that would have ended elsewhere: what came after them began with their best epoch."""
    names, ended = [stage.name for stage in state.stages], progress.ended
    if names[: len(ended)] != [stage.name for stage in ended] or not len(ended) == progress.cursor.stage < len(names):
        raise UserError(
            f"{folder.uri} is in a stage that this version of its model does not have (it has {', '.join(names)}); go "
            "on with the version that began it, or choose another run.path"
        )
    for before, stage in zip(ended, state.stages, strict=False):
        same_epochs = before.planned == stage.epochs or (
            before.epochs < before.planned and before.epochs <= stage.epochs
        )
        if not same_epochs or before.patience != stage.patience:
            patience = "null" if before.patience is None else before.patience
            raise UserError(
                f"stage '{stage.name}' of {folder.uri} has ended after {before.epochs} epochs, of at most "
                f"{before.planned} and with a patience of {patience}; with other values it might have ended elsewhere, "
                "so set train.epochs and train.patience back, or choose another run.path"
            )


def _note_damaged(state: TrainState, checkpoints: Checkpoints, name: str) -> None:
    if checkpoints.damaged:
        state.note(f"checkpoint {', '.join(checkpoints.damaged)} was damaged; the run went on from {name}")


def _check_best(state: TrainState, checkpoints: Checkpoints, name: str) -> None:
    """Read the best epoch's checkpoint too: better to know now than when the run ends."""
    best = state.best
    if best is None or best.checkpoint == name:
        return
    if isinstance(read_best(state, checkpoints, best), DamagedError):
        state.best = None
        state.note(
            f"the checkpoint {best.checkpoint} of the best epoch so far, {best.epoch}, was lost; the best epoch is one "
            f"from {state.cursor.epoch} on"
        )


def _say_where(state: TrainState, folder: RunFolder, name: str) -> None:
    if state.world.is_first:
        cursor = state.cursor
        logger.info(
            "resuming %s from checkpoint %s: %sepoch %d, phase %d, step %d (%d steps done)",
            folder.uri,
            name,
            state.stage_words,
            cursor.epoch,
            cursor.phase,
            cursor.step,
            cursor.global_step,
        )


def _check_records(state: TrainState, folder: RunFolder, *, has_checkpoint: bool) -> None:
    """Note which of the epochs that are done have no readable record, and say where those of others are dropped."""
    lost = lost_epochs(folder.metrics, run=folder.run, before=state.cursor.epoch)
    if lost:
        epochs = ", ".join(map(str, lost)) if len(lost) <= 10 else f"{lost[0]} to {lost[-1]}, {len(lost)} of them"
        state.note(f"metrics.jsonl has lost the records of epochs {epochs}; it was damaged, shortened or removed")
    if not has_checkpoint and folder.metrics.exists() and folder.metrics.stat().st_size:
        logger.warning("%s has records of earlier epochs but no checkpoint; it begins anew", folder.uri)
