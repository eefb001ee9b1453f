"""A real Ray cluster on this machine: a head and nodes, each started with `ray start`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.support.builders import ROOT
from tests.support.processes import free_port

_ATTEMPTS = 4
_HEAD = "127.0.0.2"  # Ray would put the machine's outer address in place of 127.0.0.1


class RayCluster:
    """A head without CPUs and nodes with one each, every one with a loopback address of its own.

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
        self._num_started = 0
        self._head = self._start(
            "--head", f"--port={self._port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
            "--num-cpus=0", f"--temp-dir={self._folder}", f"--ray-client-server-port={free_port()}",
        )  # fmt: skip
        self._wait(self._answers)

    def wait_until_ready(self):
        """Wait until the cluster takes a job, which is later than it answers."""
        self._wait(lambda: self.ray("job", "submit", "--no-wait", "--", "true").returncode == 0)

    def _num_cpus(self):
        status = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={_HEAD}:{self._port}"]
        done = subprocess.run(
            status, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60
        )
        found = re.search(r"/(\d+)\.0 CPU", done.stdout)
        return int(found[1]) if found else 0

    def ray(self, *arguments):
        """Run one of Ray's own commands for jobs against the cluster."""
        command, subcommand, *rest = arguments
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", command, subcommand, "--address", self.address, *rest],
            env={**os.environ, **self.environment}, cwd=ROOT, capture_output=True, text=True, timeout=400,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in [*self.nodes, self._head]:
            self.kill(node)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_node(self):
        """Start a node with one CPU and wait until it has joined; Ray gives up half a minute after a slow start."""
        joined = self._num_cpus()
        for _ in range(_ATTEMPTS):
            node = self._start(f"--address={_HEAD}:{self._port}", "--num-cpus=1")
            self._wait(lambda node=node: node.poll() is not None or self._num_cpus() > joined)
            if node.poll() is None:
                self.nodes.append(node)
                return node
            self.kill(node)
        raise AssertionError([path.read_text() for path in self._folder.glob("start-*.log")])

    def kill(self, node):
        """Kill a node with all its processes, as a power cut would."""
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
        node.wait(timeout=60)

    def _start(self, *arguments):
        self._num_started += 1
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
                   f"--node-ip-address=127.0.0.{self._num_started + 1}",
                   "--object-store-memory=100000000", *arguments]  # fmt: skip
        # Agents have fixed ports by default, which another Ray on this machine may hold.
        command += [f"--{name}-port={free_port()}" for name in ("dashboard-agent-listen", "metrics-export")]
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

    def _wait(self, condition, seconds=300):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, [path.read_text() for path in self._folder.glob("start-*.log")]
            time.sleep(0.2)
