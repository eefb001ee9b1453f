"""The training loop: stages of epochs of phases, evaluation, checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from diffmm_dist import storage
from diffmm_dist.errors import LostWorkerError, StoppedError, TakenOverError, UserError
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.monitoring.log import logger
from diffmm_dist.monitoring.progress import ProgressLine, Score
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.monitoring.timing import peak_rss_gib
from diffmm_dist.parallel.collectives import any_worker, worker_counts
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import Precision, matmul_precision
from diffmm_dist.runs.checkpoint import Checkpoints, Writer
from diffmm_dist.runs.progress import Best, Cursor
from diffmm_dist.training.allocator import give_back_freed_memory
from diffmm_dist.training.restore import load_best
from diffmm_dist.training.selection import Evaluation
from diffmm_dist.training.state import EpochValues, NonFiniteError, TrainState
from diffmm_dist.training.traces import Traces

_STEPS_BETWEEN_FINITE_CHECKS = 16  # each check waits for the device
_VALUES_SHOWN = 4


@dataclass(frozen=True)
class Standing:
    """Where a run stands between two epochs of its last stage.

    Attributes:
        epochs: of that stage that are done.
        best: the best of them.
        ended: there is none to come.
    """

    epochs: int
    best: Best
    ended: bool


def nobody_looks(standing: Standing) -> None:
    """Look at where a run stands, and let it go on."""


@dataclass
class TrainingRun:
    """All that the loop works with.

    Attributes:
        world: this worker among all.
        seed: the run's seed.
        state: where it is.
        evaluation: measures the model.
        metric: what picks the best epoch of a stage.
        evaluate_every_epochs: epochs between evaluations.
        checkpoints: where checkpoints go.
        writer: asked before anything is recorded.
        save_every_epochs: epochs between checkpoints.
        save_every_steps: steps between checkpoints inside an epoch, 0 for none.
        recorder: where scalars go.
        progress: shows where it is.
        traces: of the first steps.
        stop_requested: whether to save and stop after the present step.
        precision: of matrix products inside the phases.
        between_epochs: told where the run stands before and after every epoch; what it raises ends the run there.
    """

    world: World
    seed: int
    state: TrainState
    evaluation: Evaluation
    metric: str
    evaluate_every_epochs: int
    checkpoints: Checkpoints
    writer: Writer
    save_every_epochs: int
    save_every_steps: int
    recorder: Recorder
    progress: ProgressLine
    traces: Traces
    stop_requested: Callable[[], bool]
    precision: Precision = "float32"
    between_epochs: Callable[[Standing], None] = nobody_looks


def train(run: TrainingRun) -> None:
    """Run every epoch of every stage from where the state is.

    Raises:
        StoppedError: the run was asked to stop; a checkpoint is saved.
        UserError: a loss became NaN or infinite, or a checkpoint cannot be written; the last good one is kept.
        LostWorkerError: another worker died, or kept this one waiting for too long.
        TakenOverError: another process writes to the run now.
    """
    state = run.state
    with _explained(run):
        if not state.begun:
            state.begin_stage()
        while True:
            _tell(run)
            while not _stage_has_ended(run):
                _run_epoch(run)
                _tell(run)
            _say_whether_early(run)
            if state.stage is state.stages[-1]:
                return
            _begin_next_stage(run)


@contextmanager
def _explained(run: TrainingRun) -> Iterator[None]:
    """Say where in the run something happened."""
    try:
        yield
    except NonFiniteError as error:
        last = (run.checkpoints.names() or ["none yet"])[-1]
        raise UserError(
            f"{error}; the last good checkpoint is {last}; lower train.learning_rate or look at the features"
        ) from error
    except LostWorkerError as error:
        raise LostWorkerError(
            f"worker {run.world.rank} of {run.world.size} lost another {_where(run)}: {error}"
        ) from error
    except TakenOverError as error:
        raise TakenOverError(
            f"{error}; this one, its writer {run.writer.number}, was {_where(run)} and writes nothing more"
        ) from error


def _where(run: TrainingRun) -> str:
    state, cursor = run.state, run.state.cursor
    phase = state.phases[cursor.phase].name if cursor.phase < len(state.phases) else "evaluate"
    return f"at {state.stage_words}epoch {cursor.epoch}, phase '{phase}', step {cursor.step}"


def _stage_has_ended(run: TrainingRun) -> bool:
    """Return whether the present stage has had all its epochs, or has waited for a better one for long enough."""
    state, stage = run.state, run.state.stage
    if state.epochs_of_stage >= stage.epochs:
        return True
    if stage.patience is None or state.best is None:
        return False
    best = state.best.epoch + 1 - state.first_epoch
    waited = state.epochs_of_stage // run.evaluate_every_epochs - best // run.evaluate_every_epochs
    return waited >= stage.patience


def _tell(run: TrainingRun) -> None:
    """Tell whoever looks; what earlier stages measure is not what the run is chosen by."""
    state = run.state
    if state.stage is state.stages[-1] and state.best is not None:
        run.between_epochs(Standing(state.epochs_of_stage, state.best, _stage_has_ended(run)))


def _say_whether_early(run: TrainingRun) -> None:
    state, stage = run.state, run.state.stage
    if run.world.is_first and state.best is not None and state.epochs_of_stage < stage.epochs:
        logger.info(
            "%sno epoch has been better than %d in %d evaluations, so training ends after %d of %d epochs",
            state.stage_words,
            state.best.epoch,
            stage.patience,
            state.epochs_of_stage,
            stage.epochs,
        )


def _begin_next_stage(run: TrainingRun) -> None:
    """Begin the next stage with the best epoch of the present one."""
    state, best = run.state, run.state.best
    assert best is not None
    load_best(state, run.checkpoints, best)
    ended = state.stage.name
    state.end_stage()
    state.begin_stage()
    if run.world.is_first:
        logger.info("stage '%s' begins, with epoch %d of stage '%s'", state.stage.name, best.epoch, ended)


def _run_epoch(run: TrainingRun) -> None:
    state = run.state
    context = PhaseContext(run.world, run.seed, state.cursor.epoch)
    for phase in state.phases[state.cursor.phase :]:
        with state.epoch_values.memory.measure(phase.name):
            _run_phase(run, phase, context)
    _finish_epoch(run)


def _run_phase(run: TrainingRun, phase: Phase, context: PhaseContext) -> None:
    cursor, values = run.state.cursor, run.state.epoch_values
    with values.stopwatch.measure(phase.name), matmul_precision(run.precision):
        num_steps = phase.begin(context)
    if num_steps == 0:
        del values.stopwatch.seconds[phase.name]  # it is left out of this epoch
    else:
        _run_steps(run, phase, num_steps)
    cursor.phase, cursor.step = cursor.phase + 1, 0


def _run_steps(run: TrainingRun, phase: Phase, num_steps: int) -> None:
    cursor, values = run.state.cursor, run.state.epoch_values
    run.progress.begin(_epoch_words(run), phase.name, total=num_steps, done=cursor.step)
    with run.traces.phase(phase.name, epoch=cursor.epoch) as traced:
        for index in range(cursor.step, num_steps):
            with values.stopwatch.measure(phase.name), matmul_precision(run.precision):
                values.add(phase.step(index))
            traced()
            cursor.step, cursor.global_step = index + 1, cursor.global_step + 1
            run.progress.advance()
            if index % _STEPS_BETWEEN_FINITE_CHECKS == 0:
                values.check_finite(phase, cursor, run.world)
            _save_inside_epoch(run, phase)
    with values.stopwatch.measure(phase.name):
        values.check_finite(phase, cursor, run.world)
        phase.drop_gradients()  # no memory for them in the other phases
        if phase.optimizers:
            run.state.check_finite(phase)
        values.conclude(phase, num_steps, phase.finish(), run.world)
        give_back_freed_memory()


def _save_inside_epoch(run: TrainingRun, phase: Phase) -> None:
    """Save after the present step if it is time to, or if the run is to stop."""
    cursor = run.state.cursor
    stop = any_worker(run.stop_requested(), run.world)
    if stop or (run.save_every_steps and cursor.global_step % run.save_every_steps == 0):
        run.state.epoch_values.check_finite(phase, cursor, run.world)
        run.state.check_finite(phase)
        phase.settle()
        _save(run)
    if stop:
        raise StoppedError(f"{run.state.stage_words}epoch {cursor.epoch}, phase '{phase.name}', step {cursor.step}")


def _finish_epoch(run: TrainingRun) -> None:
    state, epoch = run.state, run.state.cursor.epoch
    done = state.epochs_of_stage + 1
    values = state.epoch_values
    is_best = False
    if done == state.stage.epochs or done % run.evaluate_every_epochs == 0:
        metrics = _evaluate(run)
        give_back_freed_memory()
        values.scalars |= {f"{_selection(run)}/{name}": value for name, value in metrics.items()}
        is_best = state.best is None or metrics[run.metric] > state.best.metrics[run.metric]
        if is_best:
            state.best = Best(epoch, metrics, run.checkpoints.name(Cursor(epoch + 1, stage=state.cursor.stage)))
    run.writer.check()
    _record(run, epoch)
    state.cursor.epoch, state.cursor.phase = epoch + 1, 0
    state.epoch_values = EpochValues()
    if is_best or _stage_has_ended(run) or done % run.save_every_epochs == 0:
        _save(run)


def _selection(run: TrainingRun) -> str:
    """Return what the tags of the selecting split begin with: of several stages each has figures of its own."""
    split = run.evaluation.selection_split
    return f"{run.state.stage.name}/{split}" if len(run.state.stages) > 1 else split


def _evaluate(run: TrainingRun) -> dict[str, float]:
    """Measure the model; when the run is to stop, save the epoch as it is before its evaluation."""
    run.progress.begin(_epoch_words(run), "evaluate")

    def poll() -> None:
        if any_worker(run.stop_requested(), run.world):
            raise StoppedError(f"{run.state.stage_words}epoch {run.state.cursor.epoch}, evaluation")

    try:
        values = run.state.epoch_values
        with values.stopwatch.measure("evaluate"), values.memory.measure("evaluate"):
            return run.evaluation.measure(run.state.model, run.evaluation.selection_split, poll=poll)
    except StoppedError:
        _save(run)
        raise


def _record(run: TrainingRun, epoch: int) -> None:
    """Record the epoch's values, times, throughput and memory, and log a line."""
    values, state = run.state.epoch_values, run.state
    seconds = dict(values.stopwatch.seconds)
    epoch_seconds = sum(value for name, value in seconds.items() if name != "checkpoint")
    scalars = values.scalars | {f"time/{name}_s": value for name, value in seconds.items()}
    scalars |= {"time/epoch_s": epoch_seconds, **_memory(run.world, values), **_traffic(run.world)}
    scalars["storage/retries"] = float(sum(worker_counts(storage.num_retries(), run.world)))
    for phase in state.phases:
        if phase.name in seconds:
            scalars[f"throughput/{phase.name}_{phase.unit}_per_s"] = phase.num_examples / seconds[phase.name]
    if len(state.stages) > 1:
        scalars["stage"] = float(state.cursor.stage)
    run.recorder.scalars(scalars, epoch=epoch)
    if run.world.is_first:
        _log_epoch(run, seconds)


def _log_epoch(run: TrainingRun, seconds: Mapping[str, float]) -> None:
    state = run.state
    parts = [_phase_words(run, name, value) for name, value in seconds.items()]
    score = _score(run)
    logger.info("%s: %s", _epoch_words(run), ", ".join(parts if score is None else [str(score), *parts]))
    left = state.stage.epochs - state.epochs_of_stage - 1
    whole = "stage" if len(state.stages) > 1 else "run"
    run.progress.end_epoch(seconds, epochs_left=left, whole=whole, score=score)


def _epoch_words(run: TrainingRun) -> str:
    state = run.state
    last = state.first_epoch + state.stage.epochs - 1
    return f"{state.stage_words}epoch {state.cursor.epoch} of {state.first_epoch}..{last}"


def _phase_words(run: TrainingRun, name: str, seconds: float) -> str:
    """Return how long a phase took and, of one that trains, the first values that it has recorded: its losses."""
    state = run.state
    trains = any(phase.name == name and phase.optimizers for phase in state.phases)
    tags = [tag for tag in state.epoch_values.scalars if tag.startswith(f"{name}/")] if trains else []
    values = [f"{tag[len(name) + 1 :]} {state.epoch_values.scalars[tag]:.4g}" for tag in tags[:_VALUES_SHOWN]]
    return f"{name} {seconds:.1f} s" + (f" ({', '.join(values)})" if values else "")


def _score(run: TrainingRun) -> Score | None:
    """Return what the epoch's evaluation has found, if it had one."""
    best = run.state.best
    value = run.state.epoch_values.scalars.get(f"{_selection(run)}/{run.metric}")
    if value is None or best is None:
        return None
    return Score(f"{run.evaluation.selection_split} {run.metric}", value, best.metrics[run.metric], best.epoch)


def _memory(world: World, values: EpochValues) -> dict[str, float]:
    """Return the peak memory of the worker that needed most, and of each where there are several.

    That of each phase too, where all workers know it and none has gone on in the middle of the epoch.
    """
    peaks = _of_workers(peak_rss_gib(), world)
    each = {f"mem/peak_gib_worker_{rank}": peak for rank, peak in enumerate(peaks)} if world.size > 1 else {}
    of_parts = {name: _of_workers(values.memory.gib.get(name, 0.0), world) for name in values.stopwatch.seconds}
    known = {f"mem/{name}_gib": max(found) for name, found in of_parts.items() if min(found) > 0}
    return {"mem/peak_gib": max(peaks)} | each | known


def _of_workers(gib: float, world: World) -> list[float]:
    return [mib / 1024 for mib in worker_counts(round(gib * 1024), world)]


def _traffic(world: World) -> dict[str, float]:
    """Return what this worker has sent in this epoch, by purpose."""
    sent = {f"comm/{purpose}_mib": num_bytes / 2**20 for purpose, num_bytes in world.sent_bytes.items()}
    world.sent_bytes.clear()
    return sent


def _save(run: TrainingRun) -> None:
    """Write a checkpoint; its time counts for the epoch in which the run goes on."""
    state = run.state
    with state.epoch_values.stopwatch.measure("checkpoint"):
        run.checkpoints.save(state.tensors(), state.progress(), state.owner_of)
