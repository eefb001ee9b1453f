"""Signals at every moment of short commands, from the program's first line to the end of its process."""

import signal
import subprocess
import time
from itertools import product
from pathlib import Path

import pytest

from tests.support.builders import synthetic_dataset
from tests.support.processes import started

ENDED = "interrupted; nothing is left half-written\n"
NUM_MOMENTS = 6


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    data = synthetic_dataset(tmp_path_factory.mktemp("data") / "d")
    return {"inspect": ["inspect", data, "--verify"], "show": ["config", "show", "configs/demo.yaml"]}


def hears(process):
    """Whether the program has begun; before that signals are Python's."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def ended(command, number, delay):
    """Run a command and send a signal some time after it has begun to hear; return its lifetime from there, and how.

    Without a signal it runs to its end.
    """
    with started(*command, env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not hears(process) and process.poll() is None:
            pass
        begin = time.monotonic()
        if number is not None:
            time.sleep(delay)
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return time.monotonic() - begin, process.returncode, out, err


@pytest.mark.parametrize("name", ["inspect", "show"])
@pytest.mark.timeout(600)
def test_at_every_moment(name, commands):
    whole_s, status, out, err = ended(commands[name], None, 0)
    assert (status, err, bool(out)) == (0, "", True)
    statuses = set()
    for moment, number in product(range(NUM_MOMENTS), (signal.SIGINT, signal.SIGTERM)):
        # The second signal falls between two moments of the first.
        delay = whole_s * (moment + (number == signal.SIGTERM) / 2) / NUM_MOMENTS
        _, status, out, err = ended(commands[name], number, delay)
        assert (status, err) in ((130, ENDED), (0, "")), (delay, status, err)
        assert status == 130 or out
        statuses.add(status)
    assert 130 in statuses
