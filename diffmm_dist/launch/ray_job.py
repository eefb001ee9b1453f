"""A run through Ray Train."""

import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmm_dist import cores, storage
from diffmm_dist.config.section import changed
from diffmm_dist.errors import (
    StoppedEarlyError,
    StoppedError,
    TakenOverError,
    TryAgainError,
    UserError,
    is_of_system,
    may_pass,
    system_sentence,
)
from diffmm_dist.launch.cluster_room import Request
from diffmm_dist.launch.following import Following
from diffmm_dist.launch.ray_cluster import ray_cluster, room_for
from diffmm_dist.launch.ray_package import is_local
from diffmm_dist.launch.signals import StopSignals
from diffmm_dist.monitoring.log import is_quiet, set_up_logging
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.parallel.group import backend
from diffmm_dist.places import check_shared
from diffmm_dist.runs.config import Config, config_from_tree, places
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.runs.run_records import Result
from diffmm_dist.staging import scratch_folder
from diffmm_dist.training.build import open_dataset
from diffmm_dist.training.teacher import check_teacher
from diffmm_dist.training.worker import run_worker

_POLL_SECONDS = 0.2
_PATIENCE_S = 60.0  # for the workers of an earlier attempt to be gone
_PATIENCE_AT_START_S = 15.0  # for those of an earlier driver


def run_on_ray(config: Config, *, recorders: Sequence[Recorder] = ()) -> Result:
    """Train in Ray workers: on the cluster that RAY_ADDRESS names, or on one started here for the run.

    Args:
        config: the run.
        recorders: told in this process what the workers' scalars are.

    Raises:
        UserError: something that the user can put right.
        StoppedError: the run was stopped and has saved a checkpoint.
        StoppedEarlyError: the run was stopped while it waited for room on the cluster, or a second time while it saved.
        TakenOverError: another process has taken the run over.
    """
    config = with_absolute_paths(config)
    # What is wrong with the dataset or the run folder is said at once, not after Ray has started.
    folder = RunFolder(config.run.path, lease_s=config.cluster.lease_s)
    # Workers of a driver that was killed are gone a moment later.
    dataset = open_dataset(config)
    check_teacher(config, dataset)
    folder.claim(config, fingerprint=dataset.manifest.fingerprint, patience_s=_PATIENCE_AT_START_S)
    folder.release()
    folder.clear_stop()
    following = Following(folder, recorders)
    try:
        with ray_cluster() as ray:
            request = room_for(ray, config.cluster)
            outcome = _fit_in_thread(config, folder, request, following)
    except KeyboardInterrupt as interrupt:  # Ray and the workers are gone by now, so what is said stays true
        raise StoppedEarlyError(f"stopped at once, without saving; {folder.last_complete()}") from interrupt
    return _unpack(outcome)


def _fit_in_thread(config: Config, folder: RunFolder, request: Request, following: Following) -> Any:
    """Run the trainer so that Ctrl-C lets the workers save first; Ray, in the main thread, would abort them."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(_fit(config, folder, request)), daemon=True)
    try:
        with StopSignals(folder.request_stop, looks=True):
            thread.start()
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
                following.look()
    finally:
        folder.clear_stop()
    following.look(now=True)
    return outcome[0]


def with_absolute_paths(config: Config) -> Config:
    """Return a configuration whose local paths do not depend on the working directory; a worker has another one."""
    check_shared(places(config))
    local = {key: place for key, place in places(config).items() if not storage.is_remote(place)}
    return changed(config, {key: str(Path(place).absolute()) for key, place in local.items()})


def _fit(config: Config, folder: RunFolder, request: Request) -> Any:
    """Run the trainer; return what the first worker returned, or the exception."""
    with scratch_folder("diffmm-meeting-") as meeting_place:
        trainer = _trainer(config, folder, request, meeting_place)
        try:
            return trainer.fit().return_value
        except Exception as error:  # handed to the main thread, which raises it
            return error


def _trainer(config: Config, folder: RunFolder, request: Request, meeting_place: str) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from diffmm_dist.launch.ray_group import FileConfig

    group = {"backend": backend(gpus=request.use_gpu), "timeout_s": math.ceil(config.cluster.timeout_s)}
    file_system, path = storage.arrow_file_system(folder.uri)
    return TorchTrainer(
        _train_function,
        train_loop_config={"config": config.model_dump(mode="json"), "threads": _word_of_user(), "quiet": is_quiet()},
        torch_config=FileConfig(**group, folder=meeting_place) if is_local() else TorchConfig(**group),
        scaling_config=ScalingConfig(
            num_workers=request.num_workers,
            use_gpu=request.use_gpu,
            resources_per_worker={"CPU": request.cpus},
            elastic_resize_monitor_interval_s=config.cluster.resize_check_s,
        ),
        run_config=RunConfig(
            storage_path=path,
            storage_filesystem=file_system,
            name="ray",
            failure_config=FailureConfig(max_failures=config.cluster.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _word_of_user() -> str | None:
    """Return the OMP_NUM_THREADS that the user has set for this command; in a job of Ray's it may be Ray's own."""
    return None if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else cores.heard()


def _train_function(job: dict[str, Any]) -> Mapping[str, Any]:
    """What a Ray worker runs.

    Ray has set OMP_NUM_THREADS here if nobody else had. What counts is what the user said to the command, and else
    what this worker's machine was started with.

    What the user can put right is returned, since Ray would wrap it when raised and try again. A lost worker is raised:
    Ray Train starts all workers again, and they go on from the last checkpoint.
    """
    import ray.train

    set_up_logging(quiet=job["quiet"])
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("ray.train") or "/ray/train/" in name:  # some are named by their files
            logging.getLogger(name).setLevel(logging.WARNING)  # they would print every report
    # torchrun sets it too, and Ray Train did once: by it workers share a machine's cores and memory.
    os.environ["LOCAL_WORLD_SIZE"] = str(ray.train.get_context().get_local_world_size())
    config = config_from_tree(job["config"], source="driver")
    cores.hear(job["threads"] or cores.started_with(cores.VARIABLE))
    folder = RunFolder(config.run.path)
    try:
        result = run_worker(
            config,
            stop_requested=folder.stop_requested,
            recorders=[_ReportToRay()],
            show_progress=False,
            patience_s=_PATIENCE_S,
        )
    except UserError as error:
        return {"try again" if may_pass(error) else "error": str(error)}
    except StoppedError as stopped:
        return {"stopped": str(stopped)}
    except TakenOverError as error:
        return {"taken over": str(error)}
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_of_system(error):
            raise
        return {"error": system_sentence(error)}
    return {"result": result}


_ENDS: dict[str, type[BaseException]] = {
    "error": UserError,
    "try again": TryAgainError,
    "stopped": StoppedError,
    "taken over": TakenOverError,
}


def _unpack(outcome: Any) -> Result:
    if isinstance(outcome, BaseException):
        raise _explained(outcome)
    for key, kind in _ENDS.items():
        if key in outcome:
            raise kind(outcome[key])
    result: Result = outcome["result"]
    return result


def _explained(error: BaseException) -> BaseException:
    """Return the failure of workers as a sentence with the last line of the one that failed first."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return error
    rank, failure = min(failures.items())
    lines = [line for line in str(failure).splitlines() if line.strip()] or [type(failure).__name__]
    return TryAgainError(
        f"worker {rank} failed and cluster.max_failures attempts are used up: {lines[-1].strip()}; the last checkpoint "
        "stands, and the same command goes on from it"
    )


class _ReportToRay(Recorder):
    """Tells Ray Train each epoch's scalars, which its dashboard shows."""

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Report them."""
        import ray.train

        ray.train.report({"epoch": epoch, **values})

    def close(self) -> None:
        """Do nothing."""
