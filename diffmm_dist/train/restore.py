"""Going on from the newest checkpoint that is not damaged, and saying what was lost on the way."""

from diffmm_dist.errors import DamagedError
from diffmm_dist.monitoring.jsonl import lost_epochs
from diffmm_dist.monitoring.log import logger
from diffmm_dist.train.checkpoint import Checkpoints
from diffmm_dist.train.run_folder import RunFolder
from diffmm_dist.train.state import TrainState, is_of_model


def restore(state: TrainState, checkpoints: Checkpoints, folder: RunFolder) -> None:
    """Go on from the newest good checkpoint, if there is one; every worker calls it at the same time.

    What is damaged is noted in the state, and so in the run's result.

    Raises:
        UserError: every checkpoint is damaged, or one cannot be reached.
    """
    found = checkpoints.newest(lambda checkpoint: (checkpoint.progress, checkpoint.tensors(state.owner_of)))
    if found is not None:
        name, (progress, tensors) = found
        state.load_tensors(tensors)
        state.load_progress(progress)
        _note_damaged(state, checkpoints, name)
        _check_best(state, checkpoints, name)
        _say_where(state, folder, name)
    if state.world.is_first:
        _check_records(state, folder, has_checkpoint=found is not None)


def _note_damaged(state: TrainState, checkpoints: Checkpoints, name: str) -> None:
    if checkpoints.damaged:
        state.note(f"checkpoint {', '.join(checkpoints.damaged)} was damaged; the run went on from {name}")


def _check_best(state: TrainState, checkpoints: Checkpoints, name: str) -> None:
    """Read the best epoch's checkpoint too: better to know now than when the run ends."""
    best = state.best
    if best is None or best.checkpoint == name:
        return
    read = checkpoints.unless_damaged(
        lambda: checkpoints.open(best.checkpoint).tensors(state.owner_of, wanted=is_of_model)
    )
    if isinstance(read, DamagedError):
        state.best = None
        state.note(
            f"the checkpoint {best.checkpoint} of the best epoch so far, {best.epoch}, was lost; the best epoch is one "
            f"from {state.cursor.epoch} on"
        )


def _say_where(state: TrainState, folder: RunFolder, name: str) -> None:
    if state.world.is_first:
        cursor = state.cursor
        logger.info(
            "resuming %s from checkpoint %s: epoch %d, phase %d, step %d (%d steps done)",
            folder.uri,
            name,
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
