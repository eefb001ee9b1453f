"""One worker of a run, in plain torch: it runs in this process or in a Ray worker, and needs neither ray nor dgl."""

import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

import pyarrow as pa
import torch

from diffmm_dist.config.section import changed
from diffmm_dist.cores import Threads, choose_threads, usable_cores
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import TrainingData
from diffmm_dist.errors import UserError
from diffmm_dist.models.recipe import Recipe
from diffmm_dist.monitoring.log import logger
from diffmm_dist.monitoring.progress import ProgressLine
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.parallel.collectives import agree, all_reduce_max, on_first, worker_counts
from diffmm_dist.parallel.world import World
from diffmm_dist.runs.checkpoint import Checkpoints, Writer
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.runs.run_records import Result
from diffmm_dist.training.allocator import give_back_freed_memory, keep_freed_memory
from diffmm_dist.training.available import available_memory
from diffmm_dist.training.build import (
    build_evaluation,
    build_recipe,
    check_trainable,
    choose_device,
    load_training_data,
    open_dataset,
)
from diffmm_dist.training.clip import clipped
from diffmm_dist.training.conclusion import conclude, has_finished
from diffmm_dist.training.environment import environment
from diffmm_dist.training.estimate import check_memory, program_bytes
from diffmm_dist.training.loop import Standing, TrainingRun, nobody_looks, train
from diffmm_dist.training.recording import check_packages, record_end, recorder_of
from diffmm_dist.training.restore import restore
from diffmm_dist.training.state import TrainState
from diffmm_dist.training.teacher import check_teacher, teacher_of
from diffmm_dist.training.traces import Traces


def run_worker(
    config: Config,
    *,
    stop_requested: Callable[[], bool],
    recorders: Sequence[Recorder] = (),
    show_progress: bool | None = None,
    patience_s: float = 0,
    between_epochs: Callable[[Standing], None] = nobody_looks,
) -> Result:
    """Train, or go on training, the configured run; return what result.json says.

    Where torch has a process group, every process of it calls this at the same time: each takes its share of the users
    and items, and the first alone writes the run folder, which all must be able to read.

    Args:
        config: the run.
        stop_requested: polled after every step; when it says yes on any worker the run saves a checkpoint and stops.
        recorders: besides the run folder's own.
        show_progress: show where the run is; None draws it on a terminal.
        patience_s: seconds to wait for another process, such as a dying one of this run, to leave the run folder.
        between_epochs: told where the run stands; what it raises ends it there, before test is measured.

    Raises:
        UserError: something that the user can put right.
        StoppedError: the run was asked to stop and has saved a checkpoint.
        TakenOverError: another process has taken the run over.
        LostWorkerError: another worker has died or hangs.
    """
    threads = prepare_process(config.cluster.threads_per_worker)
    world = World.current(choose_device(config.cluster.device), timeout=timedelta(seconds=config.cluster.timeout_s))
    _log_workers(world)
    dataset = agree(lambda: open_dataset(config), world)
    agree(lambda: check_trainable(config, dataset), world)
    agree(lambda: check_teacher(config, dataset), world)
    on_first(lambda: check_packages(config.monitoring), world)
    folder = RunFolder(config.run.path, lease_s=config.cluster.lease_s)
    on_first(lambda: folder.claim(config, fingerprint=dataset.manifest.fingerprint, patience_s=patience_s), world)
    try:
        result = agree(folder.result, world)
        if result is not None and has_finished(result, config):
            logger.info("%s has already finished; its result stands in result.json", folder.uri)
            return result
        _log_threads(threads, world)
        used, clippings = clipped(config, dataset.manifest)
        for line in clippings if world.is_first else ():
            logger.info("%s", line)
        agree(lambda: _check_memory(used, dataset, world), world)
        _check_shared(folder, world)
        result = _train_in(folder, used, dataset, world, stop_requested, recorders, show_progress, between_epochs)
        result["config"] = config.model_dump(mode="json")  # as the user wrote it
        on_first(lambda: folder.write_result(result), world)
        return result
    except UserError:
        if world.is_first:
            _check_still_own(folder)
        raise
    finally:
        if world.is_first:
            folder.release()


def _log_workers(world: World) -> None:
    processes = worker_counts(os.getpid(), world)
    if world.size > 1 and world.is_first:
        logger.info("%d workers, by rank processes %s", world.size, ", ".join(map(str, processes)))


def _check_still_own(folder: RunFolder) -> None:
    """Say that another process has the run, if it has: then that is why something of it cannot be read or written."""
    with contextlib.suppress(UserError):  # it cannot be found out either
        folder.check()


def _check_shared(folder: RunFolder, world: World) -> None:
    """Refuse a run folder that the workers do not share, before an epoch's checkpoint would find out."""
    if world.size > 1:
        agree(lambda: folder.leave_mark(world.rank), world)
        try:
            on_first(lambda: folder.check_marks(world.size), world)
        finally:
            folder.remove_mark(world.rank)


def _check_memory(config: Config, dataset: Dataset, world: World) -> None:
    """Refuse a run that cannot fit this machine before it reads the data."""
    line = check_memory(
        config,
        dataset.manifest,
        num_workers=world.size,
        workers_here=_workers_here(),
        available=available_memory(world.device),
        program=program_bytes(world.device),
        on_gpu=world.device.type == "cuda",
    )
    if world.is_first:
        logger.info("%s", line)


def _workers_here() -> int:
    """Return how many workers share this machine; Ray Train and torchrun say so."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _train_in(
    folder: RunFolder,
    config: Config,
    dataset: Dataset,
    world: World,
    stop_requested: Callable[[], bool],
    recorders: Sequence[Recorder],
    show_progress: bool | None,
    between_epochs: Callable[[Standing], None],
) -> Result:
    data = agree(lambda: load_training_data(config, dataset, world), world)
    evaluation = agree(lambda: build_evaluation(config, dataset, data), world)
    recipe = _build(folder, config, dataset, data)
    state = TrainState(recipe, world)
    writer = _writer(folder, world)
    run = agree(lambda: folder.run, world)
    checkpoints = Checkpoints(folder.checkpoints, run=run, keep=config.checkpoint.keep, world=world, writer=writer)
    restore(state, checkpoints, folder)
    _check_can_go_on(state, folder, config)
    give_back_freed_memory()
    writer.check()
    recorder = agree(
        lambda: recorder_of(folder, config, recorders, start_epoch=state.cursor.epoch, is_first=world.is_first), world
    )
    with contextlib.closing(recorder):
        with ProgressLine(enabled=show_progress if world.is_first else False) as progress:
            train(
                TrainingRun(
                    world=world,
                    seed=config.run.seed,
                    state=state,
                    evaluation=evaluation,
                    metric=config.eval.metric,
                    evaluate_every_epochs=config.eval.every_epochs,
                    checkpoints=checkpoints,
                    writer=writer,
                    save_every_epochs=config.checkpoint.every_epochs,
                    save_every_steps=config.checkpoint.every_steps,
                    recorder=recorder,
                    progress=progress,
                    traces=Traces(folder.profile if world.is_first else None, config.monitoring.profile_steps),
                    stop_requested=stop_requested,
                    precision=config.train.precision,
                    between_epochs=between_epochs,
                )
            )
        result = conclude(state, checkpoints, evaluation, folder, config, stop_requested)
        writer.check()
        record_end(recorder, config, result, state.model, dataset, data)
    return result


def _check_can_go_on(state: TrainState, folder: RunFolder, config: Config) -> None:
    if state.best is not None and config.eval.metric not in state.best.metrics:
        raise UserError(
            f"the newest checkpoint of {folder.uri} does not say {config.eval.metric} of its best epoch; remove it"
        )
    done, wanted = state.epochs_of_stage, state.stage.epochs
    if len(state.stages) > 1 and done == wanted and state.best is None:
        raise UserError(
            f"stage '{state.stage.name}' of {folder.uri} has had its {done} epochs, and the checkpoint of its best one "
            "is lost; restore it, or choose another run.path"
        )
    if done > wanted or (done == wanted and state.best is None):
        stage = f" of stage '{state.stage.name}'" if len(state.stages) > 1 else ""
        raise UserError(
            f"{folder.uri} has trained {done} epochs{stage} already, so it cannot become a run of "
            f"train.epochs={config.train.epochs}; raise it or choose another run.path"
        )


def _writer(folder: RunFolder, world: World) -> Writer:
    """Return the run's writer, which is all workers together: the first has the lock."""
    on_first(lambda: folder.remember_writer(environment(world)), world)
    number = int(all_reduce_max(float(folder.writer), world))
    return Writer(number, lambda: on_first(folder.check, world))


def _log_threads(threads: Threads, world: World) -> None:
    """Say how many threads compute and why, and where workers on other machines have another number."""
    counts = worker_counts(threads.count, world)
    if not world.is_first:
        return
    logger.info("%s", threads.line)
    if threads.warning is not None:
        logger.warning("%s", threads.warning)
    if len(set(counts)) > 1:
        logger.info("threads of the workers, by rank: %s", ", ".join(map(str, counts)))


def prepare_process(num_threads: int) -> Threads:
    """Set up this process for repeatable and fast computation on the CPU.

    Args:
        num_threads: threads of torch; 0 for this process's share of the cores.

    Returns:
        The threads that it computes with, and why so many.
    """
    threads = choose_threads(num_threads, usable_cores(), num_workers=_workers_here())
    torch.set_num_threads(threads.count)
    pa.set_cpu_count(threads.count)
    # The same as `use_deterministic_algorithms`, which would import torch's compiler first, for half a second.
    torch.set_deterministic_debug_mode("error")
    # Nothing here reads memory that it has not written, so filling it first would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    keep_freed_memory()
    return threads


def _build(folder: RunFolder, config: Config, dataset: Dataset, data: TrainingData) -> Recipe:
    """Build the recipe; `graph.kernel=auto` is decided at the first start, since the kernels differ in rounding."""
    world = data.shard.world
    chosen = agree(folder.identity, world).get("kernel")
    if config.graph.kernel == "auto" and chosen is not None:
        config = changed(config, {"graph.kernel": chosen})
    recipe = build_recipe(config, data, device=world.device, teacher=teacher_of(config, dataset, data.shard))
    if recipe.model.kernel is not None and chosen is None:
        on_first(partial(folder.remember_kernel, recipe.model.kernel), world)
    return recipe
