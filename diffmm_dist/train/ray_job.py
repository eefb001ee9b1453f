"""A run through Ray Train; the only place that imports ray."""

import logging
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmm_dist import storage
from diffmm_dist.config.load import config_from_tree
from diffmm_dist.config.schema import Config
from diffmm_dist.errors import StoppedError, UserError, one_line, system_sentence
from diffmm_dist.monitoring.log import set_up_logging
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.train.build import open_dataset
from diffmm_dist.train.run_folder import Result, RunFolder
from diffmm_dist.train.signals import StopSignals
from diffmm_dist.train.worker import run_worker

_POLL_SECONDS = 0.2
_PATIENCE_S = 60.0  # for the workers of an earlier attempt to be gone


@dataclass(frozen=True)
class Request:
    """What a run asks of the cluster.

    Attributes:
        num_workers: W, or its bounds.
        cpus: CPUs of each worker.
        use_gpu: whether each worker gets a GPU.
    """

    num_workers: int | tuple[int, int]
    cpus: int
    use_gpu: bool

    @classmethod
    def of(cls, config: Config, available: Mapping[str, float]) -> "Request":
        """Return what a configuration asks of a cluster with these resources."""
        cluster = config.cluster
        use_gpu = cluster.device == "cuda" or (cluster.device == "auto" and available.get("GPU", 0) > 0)
        return cls(cluster.num_workers, max(1, cluster.threads_per_worker), use_gpu)

    def check_fits(self, available: Mapping[str, float]) -> None:
        """Raise a ``UserError`` with both numbers if the cluster cannot hold the request; Ray would wait for ever."""
        fewest = self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]
        wanted = {"CPU": fewest * self.cpus, "GPU": fewest * int(self.use_gpu)}
        missing = [
            f"{count} {kind}s where the cluster has {available.get(kind, 0):g}"
            for kind, count in wanted.items()
            if count > available.get(kind, 0)
        ]
        if missing:
            raise UserError(
                f"cluster.num_workers={fewest} needs {' and '.join(missing)}; lower it or "
                "cluster.threads_per_worker, or add nodes"
            )


def run_on_ray(config: Config) -> Result:
    """Train in Ray workers: on the cluster that RAY_ADDRESS names, or on one started here for the run.

    Raises:
        UserError: something that the user can put right.
        StoppedError: the run was stopped and has saved a checkpoint.
    """
    config = _with_absolute_paths(config)
    # What is wrong with the dataset or the run folder is said at once, not after Ray has started.
    folder = RunFolder(config.run.path)
    folder.claim(config, fingerprint=open_dataset(config).manifest.fingerprint)
    folder.release()
    folder.clear_stop()
    ray = _start_ray()
    try:
        available = ray.cluster_resources()
        request = Request.of(config, available)
        request.check_fits(available)
        return _unpack(_fit_in_thread(config, folder, request))
    finally:
        ray.shutdown()


def _fit_in_thread(config: Config, folder: RunFolder, request: Request) -> Any:
    """Run the trainer so that Ctrl-C lets the workers save first; Ray, in the main thread, would abort them."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(_fit(config, folder, request)), daemon=True)
    try:
        with StopSignals(folder.request_stop):
            thread.start()
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
    finally:
        folder.clear_stop()
    return outcome[0]


def _start_ray() -> Any:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine that nothing outside it can reach."""
    local = not os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:
        # Without the cluster support that this variable is named for, every server of Ray's binds to loopback; Ray
        # reads it when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the workers' exchanges stay on this machine too
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"Ray cannot be imported ({one_line(error)}); install ray[default,train], or set cluster.num_workers=0 to "
            "train in this process"
        ) from error
    if not ray.is_initialized():
        # The dashboard answers Ray Train's own questions; without it the log fills with complaints.
        own = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "_node_ip_address": "127.0.0.1"}
        ray.init(logging_level="WARNING", **(own if local else {}))
    return ray


def _with_absolute_paths(config: Config) -> Config:
    """A worker has another working directory, so local paths must not depend on it."""
    tree = config.model_dump()
    for section in ("data", "run"):
        if not storage.is_remote(tree[section]["path"]):
            tree[section]["path"] = str(Path(tree[section]["path"]).absolute())
    if tree["data"]["cache"] is not None:
        tree["data"]["cache"] = str(Path(tree["data"]["cache"]).absolute())
    return Config.model_validate(tree)


def _fit(config: Config, folder: RunFolder, request: Request) -> Any:
    """Run the trainer; return what the first worker returned, or the exception."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    file_system, path = storage.arrow_file_system(folder.uri)
    trainer = TorchTrainer(
        _train_function,
        train_loop_config=config.model_dump(mode="json"),
        torch_config=TorchConfig(timeout_s=math.ceil(config.cluster.timeout_s)),
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
    try:
        return trainer.fit().return_value
    except Exception as error:  # handed to the main thread, which raises it
        return error


def _train_function(tree: dict[str, Any]) -> Mapping[str, Any]:
    """What a Ray worker runs.

    What the user can put right is returned, since Ray would wrap it when raised and try again. A lost worker is raised:
    Ray Train starts all workers again, and they go on from the last checkpoint.
    """
    set_up_logging()
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it would print every report
    config = config_from_tree(tree, source="driver")
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
        return {"error": str(error)}
    except OSError as error:
        return {"error": system_sentence(error)}
    except StoppedError as stopped:
        return {"stopped": str(stopped)}
    return {"result": result}


def _unpack(outcome: Any) -> Result:
    if isinstance(outcome, BaseException):
        raise _explained(outcome)
    if "error" in outcome:
        raise UserError(outcome["error"])
    if "stopped" in outcome:
        raise StoppedError(outcome["stopped"])
    result: Result = outcome["result"]
    return result


def _explained(error: BaseException) -> BaseException:
    """Return the failure of workers as a sentence with the last line of the one that failed first."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return error
    rank, failure = min(failures.items())
    lines = [line for line in str(failure).splitlines() if line.strip()] or [type(failure).__name__]
    return UserError(
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
