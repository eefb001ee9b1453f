"""Runs in Weights & Biases; the only place that imports wandb."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.records import RunId


class WandbRecorder(Recorder):
    """Writes settings, values, figures and the summary of a run; one that goes on goes on in the same run.

    That one has the run's own id. Values are drawn over the epoch: an epoch that is trained again, since a process was
    killed after it, is there twice with the same values.

    Args:
        project: PROJECT, or ENTITY/PROJECT.
        run: the run's id.
        name: what the run is called.
        folder: where wandb keeps its files, which exists.
    """

    def __init__(self, project: str, *, run: RunId, name: str, folder: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._image = wandb.Image
        entity, _, project = project.rpartition("/")
        # Neither the source, nor what is printed, nor git's remote, which may hold a login, is sent.
        settings = wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True)
        self._run = wandb.init(
            project=project,
            entity=entity or None,
            id=run,
            name=name,
            resume="allow",
            dir=str(folder),
            settings=settings,
        )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Write the values of an epoch."""
        self._run.log({"epoch": epoch, **values})

    def figure(self, tag: str, png: bytes, *, epoch: int) -> None:
        """Write a picture."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "figure.png")
            file.write_bytes(png)
            self._run.log({"epoch": epoch, tag: self._image(str(file))})

    def end(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Write the final figures into the summary."""
        self._run.summary.update({f"final/{tag}": value for tag, value in metrics.items()} | {"best_epoch": epoch})

    def close(self) -> None:
        """Send what wandb still holds."""
        self._run.finish()
