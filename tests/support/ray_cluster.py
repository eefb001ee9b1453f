"""A real Ray cluster on this machine: a head and nodes, each started with `ray start`, or added by an autoscaler."""

import json
import os
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
# Ray Train looks at its workers more often, and has no process that waits for nodes that are about to be reclaimed.
QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


class RayCluster:
    """A head without CPUs and nodes with one each, every one with a loopback address of its own.

    Args:
        environment: variables that every process of it gets, such as those of S3.

    Attributes:
        address: of the dashboard, for jobs.
        nodes: the processes of the nodes.
    """

    first_host = 2  # Ray would put the machine's outer address in place of 127.0.0.1

    def __init__(self, environment):
        # Sockets live below it, and their names must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.environment = environment | QUICK | {
            # A node that was killed is not waited for longer; one that only answers late has its ten seconds.
            "RAY_health_check_period_ms": "500",
            # Ray Train may ask for the room of a node that has just died; then it asks again for what there is.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "lo",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self._port, dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.nodes = []
        self._num_started = 0
        self._host = f"127.0.0.{self.first_host}:{self._port}"
        self._head = self._start(
            "--head", f"--port={self._port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
            f"--temp-dir={self._folder}", f"--ray-client-server-port={free_port()}", *self._head_options(),
        )  # fmt: skip
        self._wait(self._answers)

    def _head_options(self):
        return ["--num-cpus=0"]

    def wait_until_ready(self):
        """Wait until the cluster takes a job, which is later than it answers."""
        self._wait(lambda: self.ray("job", "submit", "--no-wait", "--", "true").returncode == 0)

    def _num_cpus(self):
        """How many CPUs the nodes that are alive have, which `ray status` would take seconds to say."""
        listed = json.loads(self._get("/api/v0/nodes?limit=1000").read())["data"]["result"]["result"]
        return sum(node["resources_total"].get("CPU", 0) for node in listed if node["state"] == "ALIVE")

    def _get(self, path):
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return urllib.request.urlopen(urllib.request.Request(self.address + path, headers=token), timeout=60)

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
            node = self._start(f"--address={self._host}", "--num-cpus=1")
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
                   f"--node-ip-address=127.0.0.{self._num_started + self.first_host - 1}",
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
            with self._get("/api/version"):
                return True
        except OSError:
            return False

    def _wait(self, condition, seconds=300):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, [path.read_text() for path in self._folder.glob("start-*.log")]
            time.sleep(0.2)


class GrowingCluster(RayCluster):
    """A head with one CPU, and one of Ray's autoscalers with the make-believe nodes of Ray's own tests.

    ``ray.cluster_utils.AutoscalingCluster`` itself stops every Ray of the machine when it starts, and reads a file that
    the wheel lacks; what it tells the autoscaler is the same.

    Args:
        version: of the autoscaler, 1 or 2.
        most: nodes with one CPU that it may start; it may try one with eight, which never starts.
    """

    first_host = 1

    def __init__(self, version, most):
        self._version, self._most = version, most
        head = "f" * 51 + "00000"  # as the provider calls it
        super().__init__({
            "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_CLOUD_INSTANCE_ID": head,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head, "RAY_enable_autoscaler_v2": str(version - 1),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or the provider's nodes would not be on loopback
        })  # fmt: skip

    def _head_options(self):
        small, too_little = ({"object_store_memory": size} for size in (80_000_000, 1))
        config = {
            "cluster_name": "growing", "max_workers": self._most + 1, "idle_timeout_minutes": 5, "upscaling_speed": 1.0,
            "provider": {
                "type": "external", "gcs_address": self._host, "use_node_id_as_ip": True,
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "disable_node_updaters": True, "disable_launch_config_check": True,
                "launch_multiple": self._version == 2,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
                "small": {"resources": {"CPU": 1, **small}, "node_config": {}, "max_workers": self._most},
                "faulty": {"resources": {"CPU": 8, **too_little}, "node_config": {}, "max_workers": 1},
            },
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in (
                "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
                "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
            )},
        }  # fmt: skip
        path = self._folder / "autoscaling.yaml"
        path.write_text(json.dumps(config))
        return ["--num-cpus=1", f"--autoscaling-config={path}"]

    def driver(self):
        """The variables of a program on this machine that joins the cluster."""
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        return {"RAY_ADDRESS": self._host, **{name: self.environment[name] for name in names}}
