"""A recorder whose server may be away: training never waits for it, and never ends because of it."""

import os
import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from diffmm_dist.errors import TryAgainError, UserError, one_line
from diffmm_dist.monitoring.log import logger
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.places import settle_local
from diffmm_dist.safe_text import refuse_secrets
from diffmm_dist.words import shown

_SQLITE = "sqlite:///"
_PROJECT = re.compile(r"(?:[\w.-]{1,128}/)?[\w.-]{1,128}")
_Record = Callable[[Recorder], None]
_PATIENCE_S = 10.0


def settle_server(uri: str) -> str:
    """Return the one form of the address of an MLflow server, or of its file, whose path becomes absolute.

    Raises:
        UserError: it is neither, or it holds credentials.
    """
    refuse_secrets(f"monitoring.mlflow={uri}")  # by its name the remedy is known
    if uri.startswith(_SQLITE) and len(uri) > len(_SQLITE):
        return f"{_SQLITE}{os.path.abspath(settle_local(uri.removeprefix(_SQLITE)))}"
    try:
        parts = urlsplit(uri)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server:
        raise UserError(f"{shown(uri)}, and must be http://HOST:PORT of a server of MLflow's, or sqlite:///FILE")
    return uri.rstrip("/")


def check_project(name: str) -> str:
    """Return the name of a project of Weights & Biases.

    Raises:
        UserError: it is none.
    """
    refuse_secrets(name)
    if not _PROJECT.fullmatch(name):
        raise UserError(f"{shown(name)}, and must be PROJECT or ENTITY/PROJECT, of letters, digits, _ . and -")
    return name


_FOR_GOOD = ("UsageError", "AuthenticationError")  # of wandb, without a login


class RemoteRecorder(Recorder):
    """Hands records on in a thread of its own; what cannot be delivered is tried again with the next one.

    The first failure is a warning. What is still to be delivered when the run has ended is tried for a while more.

    Args:
        setting: such as ``monitoring.mlflow``, for messages.
        opened: makes the recorder, which asks its server.
        at_once: make it now, so that what is wrong with it is said before there is anything to lose.
        patience_s: how long to wait for it at the end.
        is_server: what it records to may be away for a while.

    Raises:
        TryAgainError: it is to be made now and cannot be.
        UserError: likewise, and waiting would not help.
    """

    def __init__(
        self,
        setting: str,
        opened: Callable[[], Recorder],
        *,
        at_once: bool,
        patience_s: float = _PATIENCE_S,
        is_server: bool = True,
    ) -> None:
        self._setting, self._opened, self._patience_s = setting, opened, patience_s
        self._recorder: Recorder | None = None
        self._waiting: deque[_Record] = deque()
        self._has_warned = False
        if at_once:
            try:
                self._recorder = opened()
            except Exception as error:  # of another library's many kinds
                kind = TryAgainError if is_server and type(error).__name__ not in _FOR_GOOD else UserError
                raise kind(f"{setting} cannot be used: {one_line(error)}; see docs/monitoring.md") from error
        self._records: queue.SimpleQueue[_Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name=setting, daemon=True)
        self._thread.start()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Hand the settings on."""
        self._records.put(lambda recorder: recorder.begin(settings))

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Hand the values on."""
        self._records.put(lambda recorder: recorder.scalars(values, epoch=epoch))

    def figure(self, tag: str, png: bytes, *, epoch: int) -> None:
        """Hand the picture on."""
        self._records.put(lambda recorder: recorder.figure(tag, png, epoch=epoch))

    def end(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Hand the figures on."""
        self._records.put(lambda recorder: recorder.end(metrics, epoch=epoch))

    def close(self) -> None:
        """Wait for what is still to be delivered, but not for ever."""
        self._records.put(None)
        self._thread.join(self._patience_s)
        lost = len(self._waiting) + self._records.qsize()
        if self._thread.is_alive() or lost:
            logger.info("%s has missed the last %d records, which stand in the run folder", self._setting, lost)

    def _deliver(self) -> None:
        while True:
            record = self._records.get()
            self._waiting.append(record or (lambda recorder: recorder.close()))
            try:
                self._hand_over()
            except Exception as error:  # of another library's many kinds
                self._warn(error)
            if record is None:
                return

    def _hand_over(self) -> None:
        self._recorder = self._recorder or self._opened()
        while self._waiting:
            self._waiting[0](self._recorder)
            self._waiting.popleft()

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s does not take what it is told (%s); training goes on, it is tried again, and the run folder has "
                "all of it",
                self._setting,
                one_line(error),
            )
