"""Processes of the program that need not import anything: forked from one that has, which has done nothing else."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from diffmm_dist import interrupts
from tests.support.builders import ROOT

START: Final = "forkserver"
_context = get_context(START)
_context.set_forkserver_preload(["tests.support.preloaded"])


def _run(function, arguments, logs, environment, folder, begun):
    interrupts.hear()  # as launch.py does first
    assert "tests.support.preloaded" in sys.modules
    os.environ.update(environment)
    for stream, log in enumerate(logs, start=1):
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), stream)
    begun.set()
    os.chdir(folder)
    function(*arguments)


def _program(*arguments):
    from diffmm_dist import cli

    sys.argv = ["launch.py", *arguments]
    cli.main()


class Forked:
    """A running process.

    Attributes:
        pid: its number.
        log: what it has printed, standard output and standard error together unless the latter has a file of its own.
    """

    def __init__(self, log, function, *arguments, env=None, errors=None, cwd=None):
        self._log = Path(log)
        self._start = self._log.stat().st_size if self._log.exists() else 0
        begun = _context.Event()
        logs = [str(log), str(errors or log)]
        self._process = _context.Process(
            target=_run, args=(function, arguments, logs, env or {}, str(cwd or ROOT), begun)
        )
        self._process.start()
        begun.wait(60)  # what a signal does before the program's first line is not the program's
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def log(self):
        return self._log.read_bytes()[self._start :].decode() if self._log.exists() else ""

    def poll(self):
        return self._process.exitcode

    def communicate(self):
        return self.log

    def send(self, number):
        os.kill(self.pid, number)

    def wait(self, seconds=120):
        """Return how it ended."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, self.log
        return self._process.exitcode

    def kill(self):
        if self._process.exitcode is None:
            self._process.kill()
        self._process.join(60)


@contextmanager
def forked(log, *arguments, env=None):
    """Run launch.py with arguments; it is killed if it still runs afterwards."""
    process = Forked(log, _program, *map(str, arguments), env=env)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def calling(log, function, *arguments, env=None):
    """Call a function of a module; the process is killed if it still runs afterwards."""
    process = Forked(log, function, *arguments, env=env)
    try:
        yield process
    finally:
        process.kill()


def run(log, *arguments, env=None, seconds=120):
    """Run launch.py to its end and return what it printed."""
    with forked(log, *arguments, env=env) as process:
        assert process.wait(seconds) == 0, process.log
        return process.log


def launched(*arguments, check=True, timeout=280, env=None, cwd=None):
    """Run launch.py to its end, as ``builders.launch`` does; return how it ended and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = Forked(out, _program, *map(str, arguments), env=env, errors=err, cwd=cwd)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        done = subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())
    assert done.returncode == 0 or not check, done.stderr
    return done


def stopped(process):
    """Stop a process and wait until it is."""
    process.send(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)
