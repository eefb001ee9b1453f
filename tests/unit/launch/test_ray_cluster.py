"""Asking a cluster what it is and can become, and waiting for it, without one."""

import socket
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from diffmm_dist.errors import StoppedEarlyError, TryAgainError, UserError
from diffmm_dist.launch import ray_cluster as module
from diffmm_dist.launch.cluster_room import Limits, Node, NodeType, Shape, Unknown
from diffmm_dist.launch.ray_cluster import autoscaler_on_this_machine, room_for
from diffmm_dist.runs.config import ClusterConfig
from tests.support.builders import ROOT

SMALL = Limits((NodeType("small", Shape(1), 4),), 4)


class Cluster:
    """In place of Ray: what each look at it shows, the last one again and again, and room after so many waits."""

    def __init__(self, monkeypatch, *looks, growth=SMALL, comes_after=None, coming=()):
        self.looks, self.comes_after, self.asked, self.waits = list(looks), comes_after, [], 0
        self.removed = False
        self.util = ModuleType("ray.util.placement_group")
        self.util.placement_group = self.placement_group
        self.util.remove_placement_group = lambda group: setattr(self, "removed", True)
        monkeypatch.setitem(sys.modules, "ray.util.placement_group", self.util)
        monkeypatch.setattr(module, "_nodes", lambda ray: self.looks.pop(0) if len(self.looks) > 1 else self.looks[0])
        monkeypatch.setattr(module, "_growth", lambda ray: growth)
        monkeypatch.setattr(module, "_coming", lambda ray: dict(coming))
        monkeypatch.setenv("RAY_ADDRESS", "HEAD:6379")
        self.now = 0.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module.logger, "info", lambda text, *values: self.said.append(text % values))
        self.said = []

    def placement_group(self, bundles):
        self.asked.append(bundles)
        return self

    def wait(self, seconds):
        self.waits += 1
        self.now += 10
        return self.comes_after is not None and self.waits > self.comes_after


def there(cpus, free=None):
    return [Node(Shape(cpus), Shape(cpus if free is None else free))]


def wants(num_workers, **settings):
    return ClusterConfig(num_workers=num_workers, threads_per_worker=1, **settings)


def test_what_there_is_room_for_asks_for_nothing(monkeypatch):
    cluster = Cluster(monkeypatch, there(2))
    assert room_for(cluster, wants(2)).fewest == 2
    assert room_for(cluster, wants((1, 4))).num_workers == (1, 4)
    assert cluster.asked == cluster.said == []


def test_a_cluster_that_grows_is_waited_for_with_a_line_when_the_numbers_change_or_a_minute_has_passed(monkeypatch):
    cluster = Cluster(monkeypatch, there(1), there(1), there(2), comes_after=20, coming={"small": 2})
    assert room_for(cluster, wants(3)).fewest == 3
    assert cluster.asked == [[{"CPU": 1}] * 3]
    assert cluster.removed
    start = "waiting for room for 3 workers of 1 CPU each: there is room for "
    assert cluster.said == [
        f"{start}1 (1 node of 1 CPU); being started: 2 small; 590 s left (cluster.wait_for_nodes_s)",
        *[f"{start}2 (1 node of 2 CPUs); being started: 2 small; {left} s left (cluster.wait_for_nodes_s)"
          for left in (580, 520, 460, 400)],
        "there is room for 3 workers of 1 CPU each",
    ]  # fmt: skip


def test_a_cluster_that_does_not_grow_in_time_is_one_sentence_and_the_demand_is_withdrawn(monkeypatch):
    cluster = Cluster(monkeypatch, there(1))
    with pytest.raises(TryAgainError, match="after 45 s the cluster has room for 1 .1 node of 1 CPU.; nothing was"):
        room_for(cluster, wants(3, wait_for_nodes_s=45))
    assert cluster.waits == 5
    assert cluster.removed


def test_what_others_use_is_waited_for_as_long_as_it_takes(monkeypatch):
    cluster = Cluster(monkeypatch, there(2, free=1), growth=Limits(), comes_after=100)
    room_for(cluster, wants(2, wait_for_nodes_s=10))
    assert cluster.said[0] == (
        "waiting for room for 2 workers of 1 CPU each: there is room for 1 (1 node of 2 CPUs), for 2 once others free "
        "what they use"
    )
    assert len(cluster.said) == 18  # the line comes again every minute of 1,000 s


@pytest.mark.parametrize(
    ("growth", "settings"),
    [(SMALL, {"num_workers": 7}), (Limits(), {"num_workers": 2}), (SMALL, {"num_workers": 3, "wait_for_nodes_s": 0}),
     (Unknown("x"), {"num_workers": 3, "wait_for_nodes_s": 0})],
)  # fmt: skip
def test_what_the_cluster_never_holds_or_may_not_wait_for_is_refused_without_asking(growth, settings, monkeypatch):
    cluster = Cluster(monkeypatch, there(1), growth=growth)
    with pytest.raises(UserError, match=r"needs room for \d workers of 1 CPU each, and the cluster has room for 1 "):
        room_for(cluster, ClusterConfig(**settings))
    assert cluster.asked == []


def test_a_cluster_that_cannot_be_asked_is_waited_for_and_the_reason_said(monkeypatch):
    cluster = Cluster(monkeypatch, there(1), growth=Unknown("its head is silent"))
    with pytest.raises(UserError, match="after 600 s"):
        room_for(cluster, wants(2))
    assert cluster.said[0] == "whether the cluster can grow is not known: its head is silent"


def test_a_cluster_of_our_own_is_not_asked(monkeypatch):
    cluster = Cluster(monkeypatch, there(1))
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match="or add nodes"):
        room_for(cluster, wants(2))


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_while_waiting_withdraws_the_demand_and_says_that_nothing_was_trained(number, monkeypatch):
    import signal

    cluster = Cluster(monkeypatch, there(1))
    before = signal.getsignal(getattr(signal, number))
    monkeypatch.setattr(cluster, "wait", lambda seconds: signal.raise_signal(getattr(signal, number)))
    with pytest.raises(StoppedEarlyError, match="stopped while waiting for room on the cluster; nothing was trained"):
        room_for(cluster, wants(2))
    assert cluster.removed
    assert signal.getsignal(getattr(signal, number)) == before


def test_a_run_stopped_early_ends_with_130_and_its_own_words(run_cli, monkeypatch):
    from diffmm_dist import cli

    def stopped(**_):
        raise StoppedEarlyError("nothing was trained")

    monkeypatch.setattr(cli, "app", stopped)
    assert run_cli("train") == (130, "", "nothing was trained\n")


def process(folder, number, *words):
    path = folder / str(number) / "cmdline"
    path.parent.mkdir()
    path.write_bytes("\0".join(words).encode() + b"\0")


@pytest.fixture
def processes(tmp_path):
    """What runs on a head, which is also that of another cluster."""
    (tmp_path / "self").mkdir()
    config = {"max_workers": 3, "head_node_type": "h", "auth": {"ssh_private_key": "secret"},
              "available_node_types": {"h": {"resources": {"CPU": 0}, "node_config": {"KeyName": "secret"}},
                                       "w": {"resources": {"CPU": 4}, "min_workers": 1, "max_workers": 2}}}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    process(tmp_path, 1, "python", "-u", "/ray/log_monitor.py", "--gcs-address=10.0.0.1:6379")
    process(tmp_path, 2, "python", "-u", "/ray/v2/monitor.py", "--gcs-address=10.0.0.1:7000", "--autoscaling-config=no")
    process(tmp_path, 3, "raylet")
    return tmp_path


def test_the_head_says_what_its_autoscaler_may_start_and_no_more(processes):
    config = f"--autoscaling-config={processes / 'config.yaml'}"
    process(processes, 4, "python", "-u", "/ray/monitor.py", "--logs-dir=/x", "--gcs-address=10.0.0.1:6379", config)
    tree = autoscaler_on_this_machine("head.example:6379", processes)
    assert "secret" not in str(tree)
    assert Limits.of(tree) == Limits((NodeType("w", Shape(4), 2),), 3)


def test_a_head_without_an_autoscaler_says_that_nothing_can_be_added(processes):
    process(processes, 4, "python", "-u", "/ray/monitor.py", "--gcs-address=10.0.0.1:6379")
    assert Limits.of(autoscaler_on_this_machine("10.0.0.1:6379", processes)) == Limits()


def test_a_head_whose_autoscaler_runs_elsewhere_does_not_pretend_to_know(processes, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(LookupError, match="no autoscaler runs beside it"):
        autoscaler_on_this_machine("10.0.0.1:6379", processes)


def test_our_kubernetes_object_is_read_as_its_autoscaler_reads_it(processes, monkeypatch):
    """The object comes from a file here, in place of Kubernetes; Ray's own code makes a configuration of it."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    tree = yaml.safe_load((ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text())
    tree["metadata"]["namespace"] = "default"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "diffmm")
    monkeypatch.setattr(module, "_kuberay", lambda name: derive(tree))
    limits = Limits.of(autoscaler_on_this_machine("10.0.0.1:6379", processes))
    assert limits == Limits((NodeType("gpu", Shape(8, 1), 8),), 8)


def test_our_aws_file_says_how_many_machines_there_can_be():
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.autoscaler._private.util import prepare_config

    tree = prepare_config(yaml.safe_load((ROOT / "cluster" / "aws" / "ray.yaml").read_text()))
    assert Limits.of(tree) == Limits((NodeType("gpu", None, 8),), 8)


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:{port}", r"at RAY_ADDRESS=127.0.0.1:\d+ does not answer \(Connection refused\); give the address"),
     ("ray://127.0.0.1:{port}", r"does not answer \(Connection refused\)"),
     ("nonsense", r"at RAY_ADDRESS=nonsense cannot be joined \(Invalid address format: nonsense\); check the address")],
)  # fmt: skip
def test_a_cluster_that_cannot_be_joined_is_one_sentence(address, message, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # held, so that nobody else listens there
        monkeypatch.setenv("RAY_ADDRESS", address.format(port=closed.getsockname()[1]))
        with pytest.raises(UserError, match=message):
            module.ray_cluster().__enter__()


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")

    def late(*arguments, **options):
        raise Exception("The current node timed out during startup. This could happen because of many things.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(TryAgainError, match=r"^Ray did not start on this machine \(The current node .* startup\); it"):
        module.ray_cluster().__enter__()


def test_a_run_whose_token_cannot_be_read_is_refused_before_ray_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="the cluster's token .* cannot be read"):
        module.ray_cluster().__enter__()
