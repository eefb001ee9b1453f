"""One writer at a time in a run folder, which finds out before it writes that another has taken its place."""

import contextlib
import fcntl
import json
import os
import re
import socket
import stat
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from diffmm_dist.errors import TakenOverError, UserError, one_line
from diffmm_dist.monitoring.log import logger
from diffmm_dist.regular_files import read_regular

_POLL_S = 0.2
_LARGEST_LOCK = 4096  # bytes
LARGEST_WRITER = 10**9
_REMEDY = "remove it if no process is training there"


class Holder(TypedDict):
    """Who has a run folder: a random id, the machine, the process's number there, and which writer of the run it is.

    The first process to have the folder is writer 1, and every later one has a higher number.
    """

    owner: str
    host: Annotated[str, Field(max_length=255, pattern=r"^[A-Za-z0-9_.:-]+$")]
    process: int
    writer: Annotated[int, Field(ge=0, le=LARGEST_WRITER)]


def this_process(owner: str, *, writer: int) -> Holder:
    """Return what this process says of itself."""
    return Holder(owner=owner, host=_host(), process=os.getpid(), writer=writer)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.:-]", "_", socket.gethostname())[:255] or "unknown"


def who(holder: Holder) -> str:
    """Return words for a holder."""
    return f"{holder['host']} (process {holder['process']})"


class RunLock(ABC):
    """Keeps other processes out of a run folder until it is released, or its holder is dead.

    Args:
        uri: the lock's own file.

    Attributes:
        writer: this holder's number among all that the run has had; 0 before it holds.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.writer = 0

    def acquire(self, where: str, *, patience_s: float, after: int = 0, option: str = "run.path") -> None:
        """Take the lock, or wait for it.

        Args:
            where: the run folder, for messages.
            patience_s: seconds to wait for a holder that is alive. Whether one on S3 is takes a while to find out.
            after: a number below that of this writer.
            option: what names the place, for the error.

        Raises:
            UserError: another process still has it after ``patience_s`` seconds.
        """
        deadline = time.monotonic() + patience_s
        told = False
        while not self._try(after):
            holder = self._busy()
            if holder is not None and time.monotonic() >= deadline:
                raise UserError(
                    f"another process is training in {where}: {holder}; wait for it or choose another {option}"
                )
            if not told:
                logger.info("waiting for another process to leave %s", where)
            told = True
            time.sleep(_POLL_S)

    @abstractmethod
    def _try(self, after: int) -> bool:
        """Take the lock if it is free."""

    @abstractmethod
    def _busy(self) -> str | None:
        """Return who has the lock and is known to be alive, None where that is not known yet."""

    @abstractmethod
    def check(self) -> None:
        """Raise a ``TakenOverError`` if the lock is no longer this process's, which then may not write."""

    @abstractmethod
    def release(self) -> None:
        """Let others take it; what another has taken is left alone."""

    def _taken_over(self, holder: Holder | None) -> TakenOverError:
        if holder is None:
            return TakenOverError(f"has lost its lock {self._uri}, which somebody has removed")
        return TakenOverError(f"was taken over by {who(holder)}, its writer {holder['writer']}")


class FileLock(RunLock):
    """A lock of the operating system on a file, which ends with its process; a stopped process keeps it.

    Args:
        path: the file; it says who has the lock.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._file: IO[str] | None = None
        self._holder: Holder | None = None

    def _try(self, after: int) -> bool:
        if self._file is None:
            self._path.parent.resolve().mkdir(parents=True, exist_ok=True)  # a link may point at what is not there yet
            self._file = _opened(self._path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if not self._is_in_place():  # its last holder's file was removed while this process waited
            self.release()
            return False
        try:
            before = self._read()
        except UserError:
            self.release()
            raise
        self.writer = max(before["writer"] if before is not None else 0, after) + 1
        self._holder = this_process(os.urandom(16).hex(), writer=self.writer)
        self._file.truncate(0)
        self._file.write(json.dumps(self._holder) + "\n")
        self._file.flush()
        return True

    def _is_in_place(self) -> bool:
        """Return whether the open file is the one that has its name."""
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except OSError:
            return False

    def _read(self) -> Holder | None:
        """Return who took the lock last, None for nobody or a holder that has just begun to write it."""
        try:
            text = read_regular(self._path, limit=_LARGEST_LOCK)
        except FileNotFoundError:
            return None
        try:
            return TypeAdapter(Holder).validate_json(text) if text.strip() else None
        except ValidationError as error:
            raise UserError(f"{self._path} is damaged; {_REMEDY}") from error

    def _busy(self) -> str:
        holder = None
        with contextlib.suppress(UserError):
            holder = self._read()
        return who(holder) if holder is not None else "one that has just begun"

    def check(self) -> None:
        """Look whether the file still is this process's: it may have been replaced, or its server lost the lock."""
        if self._holder is None:
            return
        try:
            holder = self._read()
        except OSError as error:
            raise UserError(f"the lock {self._path} cannot be read: {one_line(error)}; give read access") from error
        if holder is None or holder["owner"] != self._holder["owner"]:
            raise self._taken_over(holder)

    def release(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = self._holder = None


def _opened(path: Path) -> IO[str]:
    """Open a lock file, which may be made now; what a link or a device stands for is not ours to write to."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if not path.is_symlink():
            raise
        raise UserError(f"{path} is a link; {_REMEDY}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no regular file; {_REMEDY}")
    return os.fdopen(descriptor, "a+")
