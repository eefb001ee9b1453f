"""Signals before a command's own work, after it, and where the error that they raise is lost."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import pytest

from diffmm_dist.errors import StoppedEarlyError
from diffmm_dist.interrupts import result_of
from diffmm_dist.launch.signals import at_once
from tests.support.builders import ROOT

SIGNALS = [signal.SIGINT, signal.SIGTERM]
ENDED = "interrupted; nothing is left half-written\n"
SEND = "import os, sys; send = lambda: os.kill(os.getpid(), {number})\n"
RUN = "sys.argv = {words}\nfrom diffmm_dist.start import main\nmain()"
SHOW = ["launch.py", "config", "show", "configs/demo.yaml"]
# Import machinery that says no error: some libraries take any that an import raises for a package that is missing.
AT_IMPORT = """
class Finder:
    def find_spec(self, name, *_):
        if name == "{name}":
            try:
                send()
            except BaseException:
                pass
sys.meta_path.insert(0, Finder())
"""
AT_EXIT = "import atexit; atexit.register(send)\n"
AT_ERROR = "import diffmm_dist.cli as cli; given = cli.message; cli.message = lambda text: (send(), given(text))[1]\n"


def ended(code, number, words):
    script = SEND.format(number=int(number)) + code + RUN.format(words=words)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_program_is_loaded(number):
    for name in ("typer", "diffmm_dist.cli_bench"):
        done = ended(AT_IMPORT.format(name=name), number, SHOW)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", ENDED)


@pytest.mark.parametrize("number", SIGNALS)
def test_after_the_work_the_status_stays(number):
    done = ended(AT_EXIT, number, SHOW)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model:" in done.stdout
    done = ended(AT_ERROR + AT_EXIT, number, ["launch.py", "config", "show", "no.yaml"])
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot read the configuration no.yaml")


class Loses:
    """Something whose end swallows every error."""

    def __init__(self, number):
        self._number = number
        self._itself = self

    def __del__(self):
        os.kill(os.getpid(), self._number)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_error_that_is_lost_is_raised_again(number, capfd):
    with pytest.raises(StoppedEarlyError, match="ended"), at_once(StoppedEarlyError("ended")):
        Loses(number)
        gc.collect()
        time.sleep(30)
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_signal_that_does_not_end_a_wait_is_heard_all_the_same():
    """Blocked for this thread, it reaches another one, as one that comes just before a wait begins ends no wait."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with pytest.raises(StoppedEarlyError, match="ended"), at_once(StoppedEarlyError("ended")):
            result_of(Future())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def test_what_a_future_gives_or_raises():
    given, failed = Future(), Future()
    given.set_result(3)
    failed.set_exception(KeyError("k"))
    assert result_of(given) == 3
    with pytest.raises(KeyError):
        result_of(failed)
