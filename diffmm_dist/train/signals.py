"""Ctrl-C and SIGTERM as a request to save and stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from diffmm_dist.monitoring.log import logger


class StopSignals:
    """While active, the first SIGINT or SIGTERM calls ``request``, and a second one interrupts at once.

    Args:
        request: asks the run to stop after its present step.
    """

    def __init__(self, request: Callable[[], None]) -> None:
        self._request = request
        self._received = False

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received = True
        logger.info("stopping after this step and saving a checkpoint; once more stops at once, without one")
        self._request()


@contextmanager
def at_once(error: BaseException) -> Iterator[None]:
    """While open, SIGINT and SIGTERM raise an error in the main thread, for what leaves nothing behind to save."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise error

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
