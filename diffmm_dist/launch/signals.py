"""Ctrl-C and SIGTERM: as a request to save and stop while a run trains, and at once otherwise."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from diffmm_dist.errors import StoppedError, TakenOverError
from diffmm_dist.interrupts import SIGNALS, after_work
from diffmm_dist.monitoring.log import logger

_AGAIN_S = 0.01
_IMPORTS = "<frozen importlib._bootstrap>"


def _is_lost(frame: FrameType | None) -> bool:
    """Return whether an error that is raised here may get lost, or end the process: in the middle of an import.

    Packages pass over what fails while they look whether another one is there, and some C++ that imports a module takes
    no error.
    """
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


class _Again:
    """Sends signals to the main thread a moment later; when the block ends, those that are still to come at once."""

    def __enter__(self) -> "_Again":
        self._waiting: list[tuple[threading.Timer, int]] = []
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        early = [number for timer, number in self._waiting if not timer.finished.is_set()]
        for timer, _number in self._waiting:
            timer.cancel()
        if early and kind is None:
            signal.raise_signal(early[-1])

    def send(self, number: int) -> None:
        """Send one."""
        timer = threading.Timer(_AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, number))
        timer.daemon = True
        self._waiting.append((timer, number))
        timer.start()


class StopSignals:
    """While active, the first SIGINT or SIGTERM asks the run to stop, and a second one interrupts it.

    Before the run has looked for the first time whether it is to stop there is nothing to save, so the first signal
    interrupts it too. What libraries make of an interrupt, such as a file that cannot be written, is one again when
    the block ends.

    Args:
        request: asks the run to stop after its present step.
        looks: whether the run looks for requests from the start.
    """

    def __init__(self, request: Callable[[], None] = lambda: None, *, looks: bool = False) -> None:
        self._request = request
        self._received = False
        self._interrupted = False
        self._looks = looks

    def requested(self) -> bool:
        """Return whether a signal came."""
        self._looks = True
        return self._received

    def __enter__(self) -> "StopSignals":
        self._again = _Again().__enter__()
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._again.__exit__(kind)
        if self._interrupted and isinstance(error, Exception) and not isinstance(error, StoppedError | TakenOverError):
            raise KeyboardInterrupt from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received or not self._looks:
            if _is_lost(frame):
                self._again.send(number)
                return
            self._interrupted = True
            raise KeyboardInterrupt
        self._received = True
        logger.info("stopping after this step and saving a checkpoint; once more stops at once, without one")
        self._request()


@contextmanager
def at_once(error: BaseException) -> Iterator[None]:
    """While open, SIGINT and SIGTERM raise an error in the main thread, for what leaves nothing behind to save.

    One that comes in the middle of an import is heard after it.

    Libraries that are interrupted may raise another error instead, such as DuckDB's ``RuntimeError``; it is replaced.
    """
    if threading.current_thread() is not threading.main_thread():  # it alone may say what signals do
        yield
        return

    received = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if _is_lost(frame):
            again.send(number)
            return
        raise error

    with _Again() as again:
        previous = {number: signal.signal(number, stop) for number in SIGNALS}
        try:
            with _heard_where_errors_are_lost(type(error), again):
                yield
        except Exception as caught:
            if received:
                raise error from caught
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, after_work(handler))


@contextmanager
def _heard_where_errors_are_lost(kind: type[BaseException], again: _Again) -> Iterator[None]:
    """While open, a signal is sent again whose error is lost, since it came while Python tidied up."""
    before = sys.unraisablehook

    def lost(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, (kind, KeyboardInterrupt)):
            again.send(signal.SIGTERM)
        else:
            before(unraisable)

    sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = before
