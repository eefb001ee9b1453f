"""One process at a time in a run folder."""

import fcntl
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO

from typing_extensions import TypedDict

from diffmm_dist import storage
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.monitoring.log import logger

LEASE_S = 30.0  # after a holder on S3 has died, others may go in so much later
_RENEW_S = 5.0
_POLL_S = 0.2


class RunLock(ABC):
    """Keeps other processes out of a run folder until it is released, or its holder is dead."""

    def acquire(self, where: str, *, patience_s: float) -> None:
        """Take the lock, or wait for it.

        Raises:
            UserError: another process still has it after ``patience_s`` seconds.
        """
        deadline = time.monotonic() + patience_s
        told = False
        while not self._try():
            if time.monotonic() >= deadline:
                raise UserError(f"another process is training in {where}; wait for it or choose another run.path")
            if not told:
                logger.info("waiting for another process to leave %s", where)
            told = True
            time.sleep(_POLL_S)

    @abstractmethod
    def _try(self) -> bool:
        """Take the lock if it is free."""

    @abstractmethod
    def release(self) -> None:
        """Let others take it."""


class FileLock(RunLock):
    """A lock of the operating system on a file, which ends with its process.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def _try(self) -> bool:
        if self._file is None:
            self._path.parent.resolve().mkdir(parents=True, exist_ok=True)  # a link may point at what is not there yet
            self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Lease(TypedDict):
    """What the lock object on S3 holds: whose it is, and until when, in seconds since 1970."""

    owner: str
    until: float


class LeaseLock(RunLock):
    """An object that its holder renews; S3 has no locks.

    Two processes that begin in the same moment both write it, and the one that wrote last has it.

    Args:
        uri: the object.
        clock: seconds since 1970.
    """

    def __init__(self, uri: str, *, clock: Callable[[], float] = time.time) -> None:
        self._uri = uri
        self._clock = clock
        self._owner = uuid.uuid4().hex
        self._released = threading.Event()
        self._renewal: threading.Thread | None = None

    def _try(self) -> bool:
        lease = self._read()
        if lease is not None and lease["owner"] != self._owner and lease["until"] > self._clock():
            return False
        self._write()
        lease = self._read()
        if lease is None or lease["owner"] != self._owner:
            return False
        self._released.clear()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self._renewal.start()
        return True

    def _read(self) -> Lease | None:
        if not storage.exists(self._uri):
            return None
        lease: Lease = storage.read_record(self._uri, Lease, remedy="remove it")
        return lease

    def _write(self) -> None:
        storage.write_json(self._uri, Lease(owner=self._owner, until=self._clock() + LEASE_S))

    def _renew(self) -> None:
        while not self._released.wait(_RENEW_S):
            try:
                self._write()
            except UserError as error:  # the storage may come back; the run fails by itself if it does not
                logger.warning("the lock could not be renewed: %s", one_line(error))

    def release(self) -> None:
        """Stop renewing and remove the object."""
        if self._renewal is not None:
            self._released.set()
            self._renewal.join()
            self._renewal = None
            storage.remove_file(self._uri)
