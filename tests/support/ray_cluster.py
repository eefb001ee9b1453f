"""A real Ray cluster on this machine: a head and nodes, each started with `ray start`."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.support.processes import free_port


class RayCluster:
    """A head without CPUs and nodes with one each, on loopback; nothing is left of it afterwards.

    Args:
        environment: variables that every process of it gets, such as those of S3.

    Attributes:
        address: of the dashboard, for jobs.
        nodes: the processes of the nodes.
    """

    def __init__(self, environment):
        # Sockets live below it, and their names must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.environment = environment | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "lo",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self._port, dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.nodes = []
        self._head = self._start(
            "--head", f"--port={self._port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
            "--num-cpus=0", f"--temp-dir={self._folder}", "--ray-client-server-port=0",
        )  # fmt: skip
        self._wait(self._answers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in [*self.nodes, self._head]:
            self.kill(node)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_node(self):
        """Start a node with one CPU."""
        self.nodes.append(self._start(f"--address=127.0.0.1:{self._port}", "--num-cpus=1"))
        return self.nodes[-1]

    def kill(self, node):
        """Kill a node with all its processes, as a power cut would."""
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
        node.wait(timeout=60)

    def _start(self, *arguments):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1",
                   "--object-store-memory=100000000", *arguments]  # fmt: skip
        log = (self._folder / f"start-{time.monotonic_ns()}.log").open("w")
        return subprocess.Popen(
            command,
            env={**os.environ, **self.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _answers(self):
        assert self._head.poll() is None, [path.read_text() for path in self._folder.glob("start-*.log")]
        try:
            with urllib.request.urlopen(f"{self.address}/api/version", timeout=5):
                return True
        except urllib.error.HTTPError:  # it wants the token
            return True
        except OSError:
            return False

    def _wait(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)
