"""A run folder: which run it is, and whether this command may continue it."""

import fcntl
import time
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from diffmm_dist import __version__, storage
from diffmm_dist.config.load import load_config
from diffmm_dist.config.render import flatten, to_yaml
from diffmm_dist.config.schema import Config
from diffmm_dist.errors import UserError, one_line

CONFIG = "config.yaml"
IDENTITY = "run.json"
RESULT = "result.json"
_LOCK_POLL_S = 0.2


class Identity(TypedDict):
    """run.json: the fingerprint of the dataset and the program's version at the first start."""

    dataset: str
    version: str


class Result(TypedDict):
    """result.json (docs/evaluation.md)."""

    protocol: str
    seed: int
    best_epoch: int
    epochs: int
    valid: dict[str, float]
    test: dict[str, float]
    seconds_per_epoch: float
    seconds_per_phase: dict[str, float]
    peak_rss_gib: float
    config: dict[str, Any]


# What may change between two commands on one run folder: where it runs and what is written, never which run it is. Of
# these only the device and the number of threads can reach a number, and then its last bits alone.
RESUMABLE_SECTIONS = frozenset({"cluster", "checkpoint", "monitoring", "graph"})
RESUMABLE_KEYS = frozenset({"run.path", "data.path", "train.epochs"})


def blocking_differences(old: Config, new: Config) -> list[str]:
    """Return one line per setting that keeps ``new`` from continuing a run of ``old``.

    The dataset's path may change, since its fingerprint is compared instead; so may the number of epochs, since
    epochs already trained do not depend on it; so may the kernel, since all kernels give the same bits.
    """
    before, after = flatten(old), flatten(new)
    return [
        f"{key} is {after[key]!r} but the run has {before[key]!r}"
        for key in after
        if before[key] != after[key] and key not in RESUMABLE_KEYS and key.split(".")[0] not in RESUMABLE_SECTIONS
    ]


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
    def existing(cls, path: str) -> "RunFolder":
        """Open the folder of a run that was started before.

        Raises:
            UserError: there is no run.
        """
        folder = cls(path)
        if not (folder.path / CONFIG).is_file():
            raise UserError(f"{path} is not a run folder (it has no {CONFIG}); give the run.path of a `train` command")
        return folder

    def config(self) -> Config:
        """Return the run's configuration."""
        return load_config(self.path / CONFIG)

    def claim(self, config: Config, *, fingerprint: str, patience_s: float = 0) -> None:
        """Make the folder this run's, or check that it is, and keep other processes out until this one ends.

        Args:
            config: the run.
            fingerprint: of its dataset.
            patience_s: seconds to wait for another process to leave the folder.

        Raises:
            UserError: it cannot be written, another process is training in it, or it holds another run.
        """
        self._lock(patience_s)
        if (self.path / CONFIG).is_file() and (self.path / IDENTITY).is_file():
            self._check_same_run(config, fingerprint)
        elif self.checkpoints.exists() or (self.path / RESULT).exists():
            raise UserError(
                f"{self.path} holds a run but its {CONFIG} or {IDENTITY} is gone, so nothing tells whether it is this "
                "one; choose another run.path or remove the folder"
            )
        else:
            storage.write_json(str(self.path / IDENTITY), Identity(dataset=fingerprint, version=__version__))
        storage.write_bytes(str(self.path / CONFIG), to_yaml(config).encode())

    def _lock(self, patience_s: float) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self.path / "lock").open("w")
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written: {one_line(error)}; "
                "choose another run.path or give write access"
            ) from error
        deadline = time.monotonic() + patience_s
        while not self._try_lock():
            if time.monotonic() >= deadline:
                raise UserError(f"another process is training in {self.path}; wait for it or choose another run.path")
            time.sleep(_LOCK_POLL_S)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let other processes use the folder."""
        self._lock_file.close()

    def request_stop(self) -> None:
        """Ask the worker, which may be another process, to save and stop."""
        self.stop_request.touch()

    def _check_same_run(self, config: Config, fingerprint: str) -> None:
        differences = blocking_differences(self.config(), config)
        if self.identity()["dataset"] != fingerprint:
            differences.append("the dataset's contents are not those that the run was started on")
        if differences:
            raise UserError(
                f"{self.path} holds another run: {'; '.join(differences)}; choose another run.path or remove the folder"
            )

    def identity(self) -> Identity:
        """Return what the run was started with."""
        remedy = "remove the run folder and train again"
        identity: Identity = storage.read_record(str(self.path / IDENTITY), Identity, remedy=remedy)
        return identity

    def result(self) -> Result | None:
        """Return result.json, or None before the run has ended."""
        path = self.path / RESULT
        if not path.is_file():
            return None
        remedy = "remove it and run the `train` command again"
        result: Result = storage.read_record(str(path), Result, remedy=remedy)
        return result

    def write_result(self, result: Result) -> None:
        """Write result.json at once."""
        storage.write_json(str(self.path / RESULT), result)
