"""A real Ray cluster on this machine: a head, started with `ray start`, and the nodes that its autoscaler adds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

from diffmm_dist.bench.processes import descendants
from tests.support.builders import ROOT
from tests.support.processes import free_port
from tests.support.ray_nodes import FOLDERS, HELD

_HOST = "127.0.0.1"
_HEAD_ID = "f" * 51 + "00000"  # as Ray's provider calls it


class GrowingCluster:
    """A head, and one of Ray's autoscalers with the make-believe nodes of Ray's own tests.

    ``ray.cluster_utils.AutoscalingCluster`` itself stops every Ray of the machine when it starts, and reads a file that
    the wheel lacks; what it tells the autoscaler is the same.

    Args:
        version: of the autoscaler, 1 or 2.
        most: nodes with one CPU that it may start.
        head_cpus: of the head.
        faulty: whether it may also try to start a node with eight CPUs, which never comes.
        environment: variables that every process of it gets, such as those of S3.

    Attributes:
        address: of the dashboard, for jobs.
        environment: of every process.
    """

    def __init__(self, version, most, *, head_cpus=1, faulty=False, environment=None):
        # Sockets live below it, and their names must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._gcs = f"{_HOST}:{free_port()}"
        dashboard = free_port()
        self.address = f"http://{_HOST}:{dashboard}"
        self.environment = (environment or {}) | {
            # A node that was killed is not waited for longer; one that only answers late has its ten seconds.
            "RAY_health_check_period_ms": "500",
            # Ray Train may ask for the room of a node that has just died; then it asks again for what there is.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "lo",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID, "RAY_enable_autoscaler_v2": str(version - 1),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or the provider's nodes would not be on loopback
            "PYTHONPATH": str(ROOT), FOLDERS: str(self._folder),  # for the provider
        }  # fmt: skip
        config = self._folder / "autoscaling.yaml"
        config.write_text(json.dumps(_autoscaling(version, self._gcs, head_cpus, most, int(faulty))))
        options = {
            "port": self._gcs.split(":")[1], "node-ip-address": _HOST, "temp-dir": self._folder,
            "dashboard-host": _HOST, "dashboard-port": dashboard, "num-cpus": head_cpus,
            "object-store-memory": 100_000_000, "autoscaling-config": config,
            # These have fixed ports by default, which another Ray on this machine may hold.
            **{f"{name}-port": free_port() for name in (
                "ray-client-server", "dashboard-agent-listen", "metrics-export",
            )},
        }  # fmt: skip
        self._options = [f"--{name}={value}" for name, value in options.items()]

    def __enter__(self):
        with self._log.open("w") as log:
            self._head = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--head", *self._options],
                env={**os.environ, **self.environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait(self._answers)
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def _log(self):
        return self._folder / "start.log"

    def wait_until_ready(self):
        """Wait until the cluster takes a job, which is later than it answers."""
        self._wait(self._takes_a_job)

    def jobs(self):
        """What the cluster says of its jobs."""
        return json.loads(self._ask("/api/jobs/").read())

    def _takes_a_job(self):
        try:
            self._ask("/api/jobs/", {"entrypoint": "true"})
        except OSError:
            return False
        return True

    def _answers(self):
        assert self._head.poll() is None, self._log.read_text()
        try:
            with self._ask("/api/version"):
                return True
        except OSError:
            return False

    def _ask(self, path, tree=None):
        """Ask the dashboard, or tell it something; Ray's own commands take seconds for it."""
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"}
        data = None if tree is None else json.dumps(tree).encode()
        return urllib.request.urlopen(urllib.request.Request(self.address + path, data, headers), timeout=60)

    def _wait(self, condition, seconds=300):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)

    def ray(self, command, subcommand, *arguments):
        """Run one of Ray's own commands for jobs against the cluster."""
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", command, subcommand, "--address", self.address, *arguments],
            env={**os.environ, **self.environment}, cwd=ROOT, capture_output=True, text=True, timeout=250,
        )  # fmt: skip

    def driver(self):
        """The variables of a program on this machine that joins the cluster."""
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        return {"RAY_ADDRESS": self._gcs, **{name: self.environment[name] for name in names}}

    def raylets(self):
        """The process numbers of the nodes that the autoscaler has started."""
        return [pid for pid in descendants(self._head.pid) if _is_of_a_node(pid)]

    @contextmanager
    def none_comes(self):
        """No node that the autoscaler starts comes before the end of this."""
        held = self._folder / HELD
        held.touch()
        try:
            yield
        finally:
            held.unlink()

    def __exit__(self, *_):
        left = descendants(self._head.pid)  # drivers of jobs among them, in sessions of their own
        if self._head.poll() is None:
            os.killpg(self._head.pid, signal.SIGKILL)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._head.wait(timeout=60)
        self._wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))  # none writes there any more
        shutil.rmtree(self._folder, ignore_errors=True)


def _is_of_a_node(pid):
    try:
        program, *options = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:  # it has ended
        return False
    return program.endswith("/raylet") and f"--node_id={_HEAD_ID}" not in options


def _autoscaling(version, gcs, head_cpus, most, most_faulty):
    """What the autoscaler is told."""
    small, too_little = ({"object_store_memory": size} for size in (80_000_000, 1))
    return {
        "cluster_name": "growing", "max_workers": most + most_faulty, "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external", "module": "tests.support.ray_nodes.NodesApart", "gcs_address": gcs,
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
            "launch_multiple": version == 2,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
            "small": {"resources": {"CPU": 1, **small}, "node_config": {}, "max_workers": most},
            "faulty": {"resources": {"CPU": 8, **too_little}, "node_config": {}, "max_workers": most_faulty},
        },
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in (
            "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
            "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
        )},
    }  # fmt: skip
