"""A run folder: which run it is, and whether this command may continue it."""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmm_dist import __version__, storage
from diffmm_dist.config.load import load_config
from diffmm_dist.config.render import blocking_differences, to_yaml
from diffmm_dist.config.schema import Config
from diffmm_dist.errors import UserError, one_line

CONFIG = "config.yaml"
IDENTITY = "run.json"
RESULT = "result.json"


class RunFolder:
    """The folder of one run: config.yaml, run.json, metrics.jsonl, tensorboard/, checkpoints/ and result.json.

    Args:
        path: the folder.
    """

    def __init__(self, path: str) -> None:
        if storage.is_remote(path):
            raise UserError(
                f"run.path {path} is an s3:// address, and a run folder must be local; `export` writes to S3"
            )
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.stop_request = self.path / "stop-requested"

    @classmethod
    def existing(cls, path: str) -> tuple["RunFolder", Config]:
        """Open the folder of a run that was started before.

        Raises:
            UserError: there is no run.
        """
        folder = cls(path)
        if not (folder.path / CONFIG).is_file():
            raise UserError(f"{path} is not a run folder (it has no {CONFIG}); give the run.path of a `train` command")
        return folder, load_config(folder.path / CONFIG)

    def claim(self, config: Config, *, fingerprint: str) -> None:
        """Make the folder this run's, or check that it is, and keep other processes out until this one ends.

        Raises:
            UserError: it cannot be written, another process is training in it, or it holds another run.
        """
        self._lock()
        if (self.path / CONFIG).is_file() and (self.path / IDENTITY).is_file():
            self._check_same_run(config, fingerprint)
        else:
            storage.write_json(str(self.path / IDENTITY), {"dataset": fingerprint, "version": __version__})
        storage.write_bytes(str(self.path / CONFIG), to_yaml(config).encode())

    def _lock(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self.path / "lock").open("w")
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written: {one_line(error)}; "
                "choose another run.path or give write access"
            ) from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process is training in {self.path}; wait for it or choose another run.path"
            ) from error

    def release(self) -> None:
        """Let other processes use the folder."""
        self._lock_file.close()

    def request_stop(self) -> None:
        """Ask the worker, which may be another process, to save and stop."""
        self.stop_request.touch()

    def _check_same_run(self, config: Config, fingerprint: str) -> None:
        differences = blocking_differences(load_config(self.path / CONFIG), config)
        if self.identity()["dataset"] != fingerprint:
            differences.append("the dataset's contents are not those that the run was started on")
        if differences:
            raise UserError(
                f"{self.path} holds another run: {'; '.join(differences)}; choose another run.path or remove the folder"
            )

    def identity(self) -> dict[str, Any]:
        """Return what the run was started with."""
        identity: dict[str, Any] = json.loads((self.path / IDENTITY).read_text(encoding="utf-8"))
        return identity

    def remember(self, values: Mapping[str, Any]) -> None:
        """Add to what the run was started with."""
        storage.write_json(str(self.path / IDENTITY), self.identity() | dict(values))

    def result(self) -> dict[str, Any] | None:
        """Return result.json, or None before the run has ended."""
        path = self.path / RESULT
        if not path.is_file():
            return None
        result: dict[str, Any] = storage.read_json(str(path))
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json at once."""
        storage.write_json(str(self.path / RESULT), result)
