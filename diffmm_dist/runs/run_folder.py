"""A run folder: which run it is, and whether this command may continue it."""

import contextlib
import math
import time
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from diffmm_dist import __version__, storage
from diffmm_dist.config.render import flatten, to_yaml
from diffmm_dist.errors import DamagedError, TakenOverError, UserError, one_line
from diffmm_dist.graph.hetero import Kernel
from diffmm_dist.monitoring.jsonl import LARGEST_METRICS, read_jsonl
from diffmm_dist.records import RunId, new_run_id, parse_record, run_of_text, sealed_text
from diffmm_dist.runs.checkpoint_names import complete_checkpoints, remove_incomplete
from diffmm_dist.runs.config import Config, config_from_text
from diffmm_dist.runs.lease import LEASE_S, LeaseLock
from diffmm_dist.runs.lock import FileLock, RunLock
from diffmm_dist.runs.run_records import FORMAT, Form, Identity, Result
from diffmm_dist.staging import is_partial, scratch_folder

CONFIG = "config.yaml"
IDENTITY = "run.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
_EVENTS = "tensorboard"
_PROFILE = "profile"
LOCK = "lock"
STOP = "stop-requested"
_STOP_POLL_S = 3.0
_MARK = "mark-"
_SCRATCH = "diffmm-run-"

# What may change between two commands on one run folder: where it runs and what is written, never which run it is. Of
# these only the device and the number of threads can reach a number, and then its last bits alone.
RESUMABLE_SECTIONS = frozenset({"cluster", "checkpoint", "monitoring", "graph"})
RESUMABLE_KEYS = frozenset(
    {"run.path", "data.path", "data.batches_ahead", "data.cache", "data.verify", "train.epochs", "train.patience"}
)


_TEACHER = "model.teacher"  # another address may hold the same one; none at all makes another run


def blocking_differences(old: Config, new: Config) -> list[str]:
    """Return one line per setting that keeps ``new`` from continuing a run of ``old``.

    The dataset's path may change, since its fingerprint is compared instead; so may a teacher's, of which the run
    remembers what it was; so may the number of epochs, since epochs already trained do not depend on it; so may the
    kernel, on which the last bits alone depend.
    """
    before, after = flatten(old), flatten(new)
    return [
        f"{key} is {after.get(key, 'not there')!r} but the run has {before.get(key, 'none')!r}"
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key)
        and key not in RESUMABLE_KEYS
        and not (key == _TEACHER and before.get(key) and after.get(key))
        and key.split(".")[0] not in RESUMABLE_SECTIONS
    ]


class RunFolder:
    """The folder of one run: config.yaml, run.json, metrics.jsonl, tensorboard/, checkpoints/ and result.json.

    On a store metrics and events are written to a temporary folder here and uploaded with every epoch.

    One process at a time writes it. Each has a number, higher than those before; a process that has been stopped or cut
    off for so long that another took its place finds out before it writes.

    Args:
        uri: the folder, a path or an address.
        lease_s: on a store, how long a writer may be silent before another may take its place.

    Attributes:
        uri: the folder.
        checkpoints: the folder of the checkpoints.
        local: where metrics and events are written; the folder itself on a disk.
        metrics: the file of the metrics.
        tensorboard: the folder of the events.
        profile: the folder of the traces.
    """

    def __init__(self, uri: str, *, lease_s: float = LEASE_S) -> None:
        self.uri = uri
        self.checkpoints = storage.join(uri, "checkpoints")
        self._remote = storage.is_remote(uri)
        lock = self._at(LOCK)
        self._lock: RunLock = LeaseLock(lock, lease_s=lease_s) if self._remote else FileLock(Path(lock))
        self._stop_polled_at = -math.inf
        self._uploaded: dict[str, tuple[int, int]] = {}

    def _at(self, name: str) -> str:
        return storage.join(self.uri, name)

    @cached_property
    def local(self) -> Path:
        """The folder for metrics and events."""
        if not self._remote:
            return Path(self.uri)
        scratch = contextlib.ExitStack()
        weakref.finalize(self, scratch.close)  # with this object, or with the process
        return Path(scratch.enter_context(scratch_folder(_SCRATCH)))

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.local / METRICS

    @property
    def tensorboard(self) -> Path:
        """The folder of the events."""
        return self.local / _EVENTS

    @property
    def profile(self) -> Path:
        """The folder of the traces."""
        return self.local / _PROFILE

    def event_files(self) -> list[str]:
        """Return the names of the run's event files; on a store those of earlier processes are there alone."""
        return storage.list_names(self._at(_EVENTS))

    @classmethod
    def existing(cls, uri: str) -> "RunFolder":
        """Open the folder of a run that was started before.

        Raises:
            UserError: there is no run.
        """
        folder = cls(uri)
        if not storage.exists(folder._at(CONFIG)):
            raise UserError(f"{uri} is not a run folder (it has no {CONFIG}); give the run.path of a `train` command")
        return folder

    def config(self) -> Config:
        """Return the run's configuration.

        Raises:
            UserError: it is missing.
            DamagedError: it is not what the run has written.
        """
        place = self._at(CONFIG)
        text = storage.read_bytes(place).decode("utf-8", errors="replace")
        try:
            run = run_of_text(text)
        except ValueError as error:
            raise DamagedError(
                f"{place} is damaged or of an earlier version: {error}; restore it, or choose another run.path"
            ) from error
        self._check_own(run, CONFIG, remedy="restore it, or choose another run.path")
        return config_from_text(text, source=place)

    @cached_property
    def run(self) -> RunId:
        """The run's id.

        Raises:
            UserError: the folder has none.
            DamagedError: run.json is not what the run has written.
        """
        return self.identity()["run"]

    def _check_own(self, run: RunId, name: str, *, remedy: str) -> None:
        if run != self.run:
            raise DamagedError(f"{self._at(name)} belongs to another run than {self._at(IDENTITY)}; {remedy}")

    def claim(self, config: Config, *, fingerprint: str, patience_s: float = 0) -> None:
        """Make the folder this run's, or check that it is, and keep other processes out until this one ends.

        Args:
            config: the run.
            fingerprint: of its dataset.
            patience_s: seconds to wait for another process that is alive to leave the folder.

        Raises:
            UserError: it cannot be written, another process is training in it, or it holds another run.
        """
        self._acquire(patience_s)
        try:
            self._make_own(config, fingerprint)
        except BaseException:
            self.release()
            raise

    def _acquire(self, patience_s: float) -> None:
        try:
            self._lock.acquire(self.uri, patience_s=patience_s, after=self._last_writer())
        except OSError as error:
            raise UserError(
                f"the run folder {self.uri} cannot be written: {one_line(error)}; "
                "choose another run.path or give write access"
            ) from error

    def _last_writer(self) -> int:
        """Return the number of the last writer, which a lock that was removed does not know."""
        with contextlib.suppress(UserError):  # it is missing, or damaged, which is said under the lock
            return self.identity().get("writer", 0)
        return 0

    @property
    def writer(self) -> int:
        """This process's number among the run's writers, 0 before it has claimed the folder."""
        return self._lock.writer

    def check(self) -> None:
        """Find out whether this process still has the folder, which it must before it writes.

        Raises:
            TakenOverError: another one has it.
            UserError: that cannot be found out.
        """
        try:
            self._lock.check()
        except TakenOverError as error:
            raise TakenOverError(f"the run {self.uri} {error}") from error

    def _make_own(self, config: Config, fingerprint: str) -> None:
        if storage.exists(self._at(CONFIG)) and storage.exists(self._at(IDENTITY)):
            self._check_same_run(config, fingerprint)
        elif storage.exists(self.checkpoints) or storage.exists(self._at(RESULT)):
            raise UserError(
                f"{self.uri} holds a run but its {CONFIG} or {IDENTITY} is gone, so nothing tells whether it is this "
                "one; choose another run.path or remove the folder"
            )
        else:
            identity = Identity(format=FORMAT, run=new_run_id(), dataset=fingerprint, version=__version__)
            storage.write_record(self._at(IDENTITY), identity)
        storage.write_bytes(self._at(CONFIG), sealed_text(to_yaml(config), run=self.run).encode())
        self._remove_leftovers()
        self.fetch_records()

    def _remove_leftovers(self) -> None:
        """Remove what killed processes were writing; nobody else writes here while the lock is held."""
        remove_incomplete(self.checkpoints, writer=self.writer)
        if not self._remote:
            for name in storage.list_names(self.uri):
                if is_partial(name):
                    storage.remove_file(self._at(name))

    def leave_mark(self, rank: int) -> None:
        """Write a small file for this worker.

        Raises:
            UserError: it cannot be written.
        """
        storage.write_bytes(self._at(f"{_MARK}{rank}"), b"")

    def check_marks(self, num_workers: int) -> None:
        """Check that the marks of all workers are here.

        Raises:
            UserError: some are not, because the workers that left them have another folder of the same name.
        """
        names = set(storage.list_names(self.uri))
        missing = [str(rank) for rank in range(num_workers) if f"{_MARK}{rank}" not in names]
        if missing:
            raise UserError(
                f"what worker {', '.join(missing)} wrote to {self.uri} cannot be seen from worker 0, so every machine "
                "has a folder of its own there; set run.path to an address such as s3://BUCKET/PREFIX or to storage "
                "that all machines share"
            )

    def remove_mark(self, rank: int) -> None:
        """Remove this worker's mark."""
        storage.remove_file(self._at(f"{_MARK}{rank}"))

    def release(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    def publish(self) -> None:
        """Upload the metrics and events that have changed; on a disk they are in place already.

        Raises:
            TakenOverError: another process has the folder.
        """
        if not self._remote:
            return
        self.check()
        for path in sorted(path for path in self.local.rglob("*") if path.is_file()):
            name, stat = path.relative_to(self.local).as_posix(), path.stat()
            state = stat.st_size, stat.st_mtime_ns
            if self._uploaded.get(name) != state and not name.endswith(".partial"):
                storage.upload(str(path), self._at(name))
                self._uploaded[name] = state

    def last_complete(self) -> str:
        """Return words for the last complete checkpoint, for a process that ends without saving."""
        try:
            names = complete_checkpoints(self.checkpoints)
        except UserError as error:
            return f"which checkpoint is the last complete one cannot be found out ({one_line(error)})"
        if not names:
            return f"{self.uri} has no complete checkpoint yet, so the same command begins anew"
        return f"the last complete checkpoint of {self.uri} is {names[-1]}, and the same command goes on from it"

    def request_stop(self) -> None:
        """Ask the worker, which may be another process, to save and stop."""
        storage.write_bytes(self._at(STOP), b"")

    def stop_requested(self) -> bool:
        """Return whether somebody asked; a store is looked at every few seconds only."""
        if self._remote:
            if time.monotonic() < self._stop_polled_at + _STOP_POLL_S:
                return False
            self._stop_polled_at = time.monotonic()
        return storage.exists(self._at(STOP))

    def clear_stop(self) -> None:
        """Forget that somebody asked."""
        storage.remove_file(self._at(STOP))

    def _check_same_run(self, config: Config, fingerprint: str) -> None:
        differences = blocking_differences(self.config(), config)
        if self.identity()["dataset"] != fingerprint:
            differences.append("the dataset's contents are not those that the run was started on")
        if differences:
            raise UserError(
                f"{self.uri} holds another run: {'; '.join(differences)}; choose another run.path or remove the folder"
            )

    def identity(self) -> Identity:
        """Return what the run was started with.

        Raises:
            UserError: it is missing, or the run folder is of a later format.
            DamagedError: it is not what the run has written.
        """
        place, remedy = self._at(IDENTITY), "remove the run folder and train again"
        data = storage.read_bytes(place)
        form: Form = parse_record(place, data, Form, remedy=remedy, must_be_sealed=True)
        if form.get("format", 1) > FORMAT:
            raise UserError(
                f"{self.uri} is a run folder of format {form['format']}, and this version of the program reads formats "
                f"1 to {FORMAT}; go on with the version that wrote it, or choose another run.path"
            )
        identity: Identity = parse_record(place, data, Identity, remedy=remedy, must_be_sealed=True)
        return identity

    def remember_kernel(self, kernel: Kernel) -> None:
        """Note which sparse kernel `auto` has chosen, so that the run goes on with it."""
        self.check()
        storage.write_record(self._at(IDENTITY), {**self.identity(), "kernel": kernel})

    def remember_writer(self, environment: Mapping[str, str] | None = None) -> None:
        """Note that this process trains from now on, with what, and writes what it writes in the present format."""
        self.check()
        present: dict[str, Any] = {"format": FORMAT, "writer": self.writer}
        if environment:
            present["environment"] = dict(environment)
        storage.write_record(self._at(IDENTITY), {**self.identity(), **present})

    def result(self) -> Result | None:
        """Return result.json, or None before the run has ended."""
        if not storage.exists(self._at(RESULT)):
            return None
        remedy = "remove it and run the `train` command again"
        result: Result = storage.read_record(self._at(RESULT), Result, remedy=remedy, must_be_sealed=True)
        self._check_own(result["run"], RESULT, remedy=remedy)
        return result

    def fetch_records(self) -> None:
        """Bring metrics.jsonl here as the last writer has uploaded it; on a disk it is in place already.

        Raises:
            UserError: it cannot be read.
        """
        if self._remote and storage.exists(self._at(METRICS)):
            self.metrics.write_bytes(storage.read_bytes(self._at(METRICS), limit=LARGEST_METRICS))

    def records(self) -> list[dict[str, Any]]:
        """Return what metrics.jsonl holds.

        Raises:
            UserError: a line is not what the run has written.
        """
        return read_jsonl(self.metrics, run=self.run)

    def write_result(self, result: Result) -> None:
        """Write result.json at once.

        Raises:
            TakenOverError: another process has the folder.
        """
        self.check()
        storage.write_record(self._at(RESULT), result)
