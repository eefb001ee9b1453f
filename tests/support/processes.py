"""Programs that tests start, and what they wait for."""

import json
import socket
import time
from pathlib import Path

from tests.support.builders import metrics_of


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def checkpoints(run, prefix="epoch-"):
    """Names of the complete checkpoints, or of the ones being written (``partial-``)."""
    return sorted(path.name for path in (Path(run) / "checkpoints").glob(f"{prefix}*"))


def assert_same_result(run, other):
    results = [json.loads((Path(path) / "result.json").read_text()) for path in (run, other)]
    for key in ("valid", "test", "best_epoch", "epochs", "seed", "protocol"):
        assert results[0][key] == results[1][key], key
    assert metrics_of(run) == metrics_of(other)
