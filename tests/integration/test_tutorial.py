"""docs/tutorial.md, from tables of a shop to answers over HTTP: every block runs and prints what the page shows."""

import contextlib
import shlex
import signal
import subprocess

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from tests.support.builders import ROOT
from tests.support.page_runs import PageRun, asked
from tests.support.pages import blocks_of, shape_of
from tests.support.processes import free_port, started

PAGE = ROOT / "docs" / "tutorial.md"


class Server:
    """The server that the page starts, at a port of its own, until the test ends."""

    def __init__(self, ending):
        self._ending = ending
        self.address = ""

    def serve(self, command, shown):
        words = shlex.split(command)[2:]
        process = self._ending.enter_context(
            started(
                *words,
                "--port",
                free_port(),
                env={"RAY_ADDRESS": ""},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        self._ending.callback(process.wait, timeout=60)
        self._ending.callback(process.send_signal, signal.SIGINT)
        line = process.stdout.readline()
        self.address = line.split(": ")[0]
        assert line.strip().replace(self.address, "http://127.0.0.1:8000") == shown[0]

    def curl(self, command, shown):
        assert shape_of([asked(command, self.address)]) == shape_of(shown)


@pytest.fixture
def server():
    with contextlib.ExitStack() as ending:
        yield Server(ending)


def test_the_tutorial(tmp_path, monkeypatch, run_cli, server):
    monkeypatch.chdir(tmp_path)
    run = PageRun(run_cli, others={"serve": server.serve, "curl": server.curl})
    assert run.page(PAGE) == sum(block.language != "text" for block in blocks_of(PAGE))
    assert len(run.names["ids"]) == 2
