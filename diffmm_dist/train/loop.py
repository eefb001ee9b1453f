"""The training loop: epochs of phases, evaluation, checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass

from diffmm_dist import s3
from diffmm_dist.errors import LostWorkerError, StoppedError, TakenOverError, UserError
from diffmm_dist.models.base import Phase, PhaseContext
from diffmm_dist.monitoring.log import logger
from diffmm_dist.monitoring.progress import ProgressBar
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.monitoring.timing import peak_rss_gib
from diffmm_dist.parallel.collectives import any_worker, worker_counts
from diffmm_dist.parallel.world import World
from diffmm_dist.precision import Precision, matmul_precision
from diffmm_dist.train.allocator import give_back_freed_memory
from diffmm_dist.train.checkpoint import Checkpoints, Writer
from diffmm_dist.train.selection import Evaluation
from diffmm_dist.train.state import Best, Cursor, EpochValues, NonFiniteError, TrainState

_STEPS_BETWEEN_FINITE_CHECKS = 16  # each check waits for the device


@dataclass
class TrainingRun:
    """All that the loop works with.

    Attributes:
        world: this worker among all.
        seed: the run's seed.
        num_epochs: how many epochs the run has.
        state: where it is.
        evaluation: measures the model.
        metric: what picks the best epoch.
        evaluate_every_epochs: epochs between evaluations.
        checkpoints: where checkpoints go.
        writer: asked before anything is recorded.
        save_every_epochs: epochs between checkpoints.
        save_every_steps: steps between checkpoints inside an epoch, 0 for none.
        recorder: where scalars go.
        progress: the progress bar.
        stop_requested: whether to save and stop after the present step.
        precision: of matrix products inside the phases.
    """

    world: World
    seed: int
    num_epochs: int
    state: TrainState
    evaluation: Evaluation
    metric: str
    evaluate_every_epochs: int
    checkpoints: Checkpoints
    writer: Writer
    save_every_epochs: int
    save_every_steps: int
    recorder: Recorder
    progress: ProgressBar
    stop_requested: Callable[[], bool]
    precision: Precision = "float32"


def train(run: TrainingRun) -> None:
    """Run every epoch from where the state is.

    Raises:
        StoppedError: the run was asked to stop; a checkpoint is saved.
        UserError: a loss became NaN or infinite, or a checkpoint cannot be written; the last good one is kept.
        LostWorkerError: another worker died, or kept this one waiting for too long.
        TakenOverError: another process writes to the run now.
    """
    state = run.state
    while state.cursor.epoch < run.num_epochs:
        context = PhaseContext(run.world, run.seed, state.cursor.epoch)
        try:
            for phase in state.phases[state.cursor.phase :]:
                _run_phase(run, phase, context)
            _finish_epoch(run)
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
    cursor, phases = run.state.cursor, run.state.phases
    phase = phases[cursor.phase].name if cursor.phase < len(phases) else "evaluate"
    return f"at epoch {cursor.epoch}, phase '{phase}', step {cursor.step}"


def _run_phase(run: TrainingRun, phase: Phase, context: PhaseContext) -> None:
    cursor, values = run.state.cursor, run.state.epoch_values
    with values.stopwatch.measure(phase.name), matmul_precision(run.precision):
        num_steps = phase.begin(context)
    run.progress.begin(f"epoch {cursor.epoch} {phase.name}", total=num_steps, done=cursor.step)
    for index in range(cursor.step, num_steps):
        with values.stopwatch.measure(phase.name), matmul_precision(run.precision):
            values.add(phase.step(index))
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
    cursor.phase, cursor.step = cursor.phase + 1, 0


def _save_inside_epoch(run: TrainingRun, phase: Phase) -> None:
    """Save after the present step if it is time to, or if the run is to stop."""
    cursor = run.state.cursor
    stop = any_worker(run.stop_requested(), run.world)
    if stop or (run.save_every_steps and cursor.global_step % run.save_every_steps == 0):
        run.state.epoch_values.check_finite(phase, cursor, run.world)
        run.state.check_finite(phase)
        _save(run)
    if stop:
        raise StoppedError(f"epoch {cursor.epoch}, phase '{phase.name}', step {cursor.step}")


def _finish_epoch(run: TrainingRun) -> None:
    state, epoch = run.state, run.state.cursor.epoch
    is_last = epoch + 1 == run.num_epochs
    values = state.epoch_values
    is_best = False
    if is_last or (epoch + 1) % run.evaluate_every_epochs == 0:
        metrics = _evaluate(run)
        give_back_freed_memory()
        values.scalars |= {f"{run.evaluation.selection_split}/{name}": value for name, value in metrics.items()}
        is_best = state.best is None or metrics[run.metric] > state.best.metrics[run.metric]
        if is_best:
            state.best = Best(epoch, metrics, run.checkpoints.name(Cursor(epoch + 1)))
    run.writer.check()
    _record(run, epoch)
    state.cursor.epoch, state.cursor.phase = epoch + 1, 0
    state.epoch_values = EpochValues()
    if is_best or is_last or (epoch + 1) % run.save_every_epochs == 0:
        _save(run)


def _evaluate(run: TrainingRun) -> dict[str, float]:
    """Measure the model; when the run is to stop, save the epoch as it is before its evaluation."""

    def poll() -> None:
        if any_worker(run.stop_requested(), run.world):
            raise StoppedError(f"epoch {run.state.cursor.epoch}, evaluation")

    try:
        with run.state.epoch_values.stopwatch.measure("evaluate"):
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
    scalars |= {"time/epoch_s": epoch_seconds, **_memory(run.world), **_traffic(run.world)}
    scalars["storage/retries"] = float(sum(worker_counts(s3.num_retries(), run.world)))
    for phase in state.phases:
        scalars[f"throughput/{phase.name}_{phase.unit}_per_s"] = phase.num_examples / seconds[phase.name]
    run.recorder.scalars(scalars, epoch=epoch)
    parts = [f"{name} {value:.1f} s" for name, value in seconds.items()]
    split = run.evaluation.selection_split
    score = scalars.get(f"{split}/{run.metric}")
    if score is not None and state.best is not None:
        best = f"best {state.best.metrics[run.metric]:.4f}, {state.best.epoch}"
        parts.insert(0, f"{split} {run.metric} {score:.4f} ({best})")
    if run.world.is_first:
        logger.info("epoch %d of 0..%d: %s", epoch, run.num_epochs - 1, ", ".join(parts))


def _memory(world: World) -> dict[str, float]:
    """Return the peak memory of the worker that needed most, and of each where there are several."""
    peaks = [mib / 1024 for mib in worker_counts(round(peak_rss_gib() * 1024), world)]
    each = {f"mem/peak_gib_worker_{rank}": peak for rank, peak in enumerate(peaks)} if world.size > 1 else {}
    return {"mem/peak_gib": max(peaks)} | each


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
