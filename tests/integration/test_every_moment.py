"""Signals at every moment of short commands, from the program's first line to the end of its process."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.builders import synthetic_dataset
from tests.support.processes import started

ENDED = "interrupted; nothing is left half-written\n"
STEPS_S = {"inspect": 0.25, "show": 0.1}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    data = synthetic_dataset(tmp_path_factory.mktemp("data") / "d")
    return {"inspect": ["inspect", data, "--verify"], "show": ["config", "show", "configs/demo.yaml"]}


def hears(process):
    """Whether the program has begun; before that signals are Python's."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["inspect", "show"])
@pytest.mark.timeout(600)
def test_at_every_moment(name, number, commands):
    delay, finished = 0.0, 0
    while finished < 2:
        with started(*commands[name], env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while not hears(process) and process.poll() is None:
                pass
            time.sleep(delay)
            over = process.poll() is not None
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, err) in ((130, ENDED), (0, "")), (delay, process.returncode, err)
        assert process.returncode == 130 or out
        finished += over
        delay += STEPS_S[name]
