"""Programs that tests start, and what they wait for."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from tests.support.builders import ROOT, metrics_of


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def started(*arguments, env, **kwargs):
    """Start launch.py in a session of its own; it is killed with all its processes if it still runs afterwards."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *map(str, arguments)], env={**os.environ, **env}, text=True,
        start_new_session=True, **kwargs,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def checkpoints(run, prefix="epoch-"):
    """Names of the complete checkpoints, or of the ones being written (``partial-``)."""
    return sorted(path.name for path in (Path(run) / "checkpoints").glob(f"{prefix}*"))


def assert_same_result(run, other):
    results = [json.loads((Path(path) / "result.json").read_text()) for path in (run, other)]
    for key in ("valid", "test", "best_epoch", "epochs", "seed", "protocol"):
        assert results[0][key] == results[1][key], key
    assert metrics_of(run) == metrics_of(other)


@contextmanager
def served(command, port):
    """Run a server until the block ends."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.terminate()
        server.wait(timeout=30)


def _answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
