"""A run through Ray Train; the only place that imports ray."""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmm_dist import storage
from diffmm_dist.config.load import config_from_tree
from diffmm_dist.config.schema import Config
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import StoppedError, UserError, one_line, system_sentence
from diffmm_dist.monitoring.log import set_up_logging
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.train.run_folder import Result, RunFolder
from diffmm_dist.train.signals import StopSignals
from diffmm_dist.train.worker import run_worker

_POLL_SECONDS = 0.2


def run_on_ray(config: Config) -> Result:
    """Train in a Ray worker: on the cluster that RAY_ADDRESS names, or on one started here for the run.

    Raises:
        UserError: something that the user can put right.
        StoppedError: the run was stopped and has saved a checkpoint.
    """
    config = _with_absolute_paths(config)
    # What is wrong with the dataset or the run folder is said at once, not after Ray has started.
    folder = RunFolder(config.run.path)
    folder.claim(config, fingerprint=Dataset.open(config.data.path).manifest.fingerprint)
    folder.release()
    folder.stop_request.unlink(missing_ok=True)
    ray = _start_ray()
    outcome: list[Any] = []
    # Ray handles Ctrl-C by aborting the workers, but only from the main thread; ours lets them save first.
    thread = threading.Thread(target=lambda: outcome.append(_fit(config, folder)), daemon=True)
    try:
        with StopSignals(folder.request_stop):
            thread.start()
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
    finally:
        folder.stop_request.unlink(missing_ok=True)
        ray.shutdown()
    return _unpack(outcome[0])


def _start_ray() -> Any:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine that nothing outside it can reach."""
    local = not os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:
        # Without the cluster support that this variable is named for, every server of Ray's binds to loopback; Ray
        # reads it when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
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
    return Config.model_validate(tree)


def _fit(config: Config, folder: RunFolder) -> Any:
    """Run the trainer; return what the worker returned, or the exception."""
    import ray
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    device = config.cluster.device
    use_gpu = device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    trainer = TorchTrainer(
        _train_function,
        train_loop_config=config.model_dump(mode="json"),
        scaling_config=ScalingConfig(num_workers=config.cluster.num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            storage_path=str(folder.path), name="ray", logging_config=LoggingConfig(log_level="WARNING")
        ),
    )
    try:
        return trainer.fit().return_value
    except Exception as error:  # handed to the main thread, which raises it
        return error


def _train_function(tree: dict[str, Any]) -> Mapping[str, Any]:
    """What a Ray worker runs; what the user can put right is returned, since Ray would wrap it when raised."""
    set_up_logging()
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it would print every report
    config = config_from_tree(tree, source="driver")
    folder = RunFolder(config.run.path)
    try:
        result = run_worker(
            config, stop_requested=folder.stop_request.exists, recorders=[_ReportToRay()], show_progress=False
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
        raise outcome
    if "error" in outcome:
        raise UserError(outcome["error"])
    if "stopped" in outcome:
        raise StoppedError(outcome["stopped"])
    result: Result = outcome["result"]
    return result


class _ReportToRay(Recorder):
    """Tells Ray Train each epoch's scalars, which its dashboard shows."""

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Report them."""
        import ray.train

        ray.train.report({"epoch": epoch, **values})

    def close(self) -> None:
        """Do nothing."""
