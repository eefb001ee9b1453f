"""Runs in MLflow; the only place that imports mlflow."""

import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.records import RunId

_EXPERIMENT = "diffmm-dist"
_TAG = "diffmm_dist.run"
_LONGEST = 6000  # characters of a parameter
_AT_ONCE = 100  # parameters that one request may hold
_FINAL = "final"
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # else a request is tried for minutes; the next record tries again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MlflowRecorder(Recorder):
    """Writes parameters, metrics and figures of a run; one that goes on goes on in the same run of MLflow's.

    That one is found by a tag with the run's id. MLflow's names know no ``@``, so ``valid/recall@20`` is
    ``valid/recall_at_20``; the final figures stand below ``final/``. The experiment is MLFLOW_EXPERIMENT_NAME, or
    ``diffmm-dist``.

    Args:
        uri: of the server, or ``sqlite:///FILE``.
        run: the run's id.
        name: what the run is called.
    """

    def __init__(self, uri: str, *, run: RunId, name: str) -> None:
        for variable, value in _DEFAULTS.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient

        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri)
        self._has_ended = False
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT), uri)
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run}'", max_results=1)
        self._goes_on = bool(found)
        if found:
            self._run: str = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(experiment, run_name=name, tags={_TAG: run}).info.run_id

    def _experiment(self, name: str, uri: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        file = uri.removeprefix("sqlite:///")  # figures lie beside it, and not in whatever folder this process runs in
        place = Path(file).with_name("mlartifacts").as_uri() if file != uri else None
        return str(self._client.create_experiment(name, artifact_location=place))

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings as parameters, which MLflow never changes: those that the run was started with."""
        from mlflow.entities import Param

        if self._goes_on:
            return
        parameters = [Param(key, str(value)[:_LONGEST]) for key, value in settings.items()]
        for start in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self._run, params=parameters[start : start + _AT_ONCE])

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Write the values, with the epoch as their step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = {tag.replace("@", "_at_"): value for tag, value in values.items() if math.isfinite(value)}
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, epoch) for name, value in finite.items()])

    def figure(self, tag: str, png: bytes, *, epoch: int) -> None:
        """Write the picture as an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{tag.rpartition('/')[2]}-{epoch:05d}.png")
            file.write_bytes(png)
            self._client.log_artifact(self._run, str(file), tag.rpartition("/")[0] or None)

    def end(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Write the final figures, and that the run has finished."""
        self.scalars({f"{_FINAL}/{tag}": value for tag, value in metrics.items()}, epoch=epoch)
        self._client.set_terminated(self._run, "FINISHED")
        self._has_ended = True

    def close(self) -> None:
        """Say that the run was stopped, if it has not finished."""
        if not self._has_ended:
            self._client.set_terminated(self._run, "KILLED")
