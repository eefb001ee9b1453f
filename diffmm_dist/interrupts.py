"""Ctrl-C and SIGTERM outside a command's own work: while the program is being loaded, and when it is about to end."""

import os
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from diffmm_dist.statuses import INTERRUPTED

if TYPE_CHECKING:
    from concurrent.futures import Future

Result = TypeVar("Result")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_S = 0.5
ENDED = "interrupted; nothing is left half-written"


def end_program(number: int, frame: FrameType | None) -> None:
    """End this process now, as the handler of a signal; an error raised in the middle of an import can get lost."""
    try:
        os.write(2, f"{ENDED}\n".encode())
    finally:
        os._exit(INTERRUPTED)


def hear() -> None:
    """End the program at signals, until a command says what they do."""
    for number in SIGNALS:
        signal.signal(number, end_program)


def after_work(handler: Any) -> Any:
    """Return what is to handle signals after the work of a command, before which ``handler`` did.

    Where that was ``end_program`` nothing is left to do, and how the command has ended stays its status.
    """
    return signal.SIG_IGN if handler is end_program else handler


def result_of(future: "Future[Result]") -> Result:
    """Return what a future gives, and hear signals meanwhile.

    One that comes just before a wait begins does not end it: Python hears it when the wait is over.
    """
    from concurrent.futures import wait  # when it is needed: signals are to be heard from the program's first moment on

    while not wait([future], timeout=_LOOK_S).done:
        pass
    return future.result()


def ignore() -> None:
    """Ignore signals that would end the program, since it is ending."""
    for number in SIGNALS:
        if signal.getsignal(number) is end_program:
            signal.signal(number, signal.SIG_IGN)
