"""Runs on a cluster whose autoscaler adds nodes: both of Ray's own, with Ray's provider of make-believe nodes."""

import os
import re
import signal
import subprocess

import pytest

from tests.support.builders import launch, metrics_of, synthetic_dataset, write_config
from tests.support.processes import started

pytest.importorskip("ray", reason="Ray is not installed")

from tests.support.ray_cluster import GrowingCluster

pytestmark = pytest.mark.timeout(600)


both = pytest.mark.parametrize("cluster", [1, 2], indirect=True)
older, newer = (pytest.mark.parametrize("cluster", [version], indirect=True) for version in (1, 2))
WHAT_NEVER_COMES = ["cluster.num_workers=1", "cluster.threads_per_worker=8"]


@pytest.fixture(scope="module")
def cluster(request):
    """A head with one CPU, to which two more of one CPU can come, and one of eight never does."""
    with GrowingCluster(request.param, most=2, faulty=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoscaling")
    dataset = synthetic_dataset(folder / "d", users=100, items=60, interactions=1500)
    return write_config(folder / "c.yaml", data={"path": dataset}, run={"path": "to be set"}, train={"epochs": 2})


def refused(cluster, config, tmp_path, *settings, status=1):
    """The last line of a run that is refused."""
    done = launch("train", "--config", config, f"run.path={tmp_path / 'run'}", *settings, env=cluster.driver(),
                  check=False)  # fmt: skip
    assert done.returncode == status, done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    return done.stderr


@both
def test_what_the_cluster_can_never_become_is_refused_at_once(cluster, config, tmp_path):
    err = refused(cluster, config, tmp_path, "cluster.num_workers=12")
    assert "waiting" not in err
    assert err.splitlines()[-1] == (
        "error: cluster.num_workers=12 needs room for 12 workers of 1 CPU each, and the cluster has room for 1 (1 node "
        "of 1 CPU) and can grow to 11 (at most 2 small of 1 CPU, at most 1 faulty of 8 CPUs); lower it or "
        "cluster.threads_per_worker, or let the autoscaler start more or larger nodes"
    )


@newer
def test_a_run_that_is_stopped_while_it_waits_has_trained_nothing(cluster, config, tmp_path):
    words = ["train", "--config", config, f"run.path={tmp_path / 'run'}", *WHAT_NEVER_COMES]
    with started(*words, env=cluster.driver(), stderr=subprocess.PIPE) as process:
        while "waiting for room" not in (line := process.stderr.readline()):
            assert line, process.wait()
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped while waiting for room on the cluster; nothing was trained or saved"


@newer
def test_nodes_that_do_not_come_in_time_are_one_sentence(cluster, config, tmp_path):
    err = refused(cluster, config, tmp_path, *WHAT_NEVER_COMES, "cluster.wait_for_nodes_s=3", status=75)
    assert re.search(
        r"error: cluster.num_workers=1 needs room for 1 worker of 8 CPUs, and after 3 s the cluster has room for 0 "
        r"\(\d nodes? of 1 CPU\).*; nothing was trained: run the same command again",
        err.splitlines()[-1],
    )


@older  # with the newer one test_cluster.py's jobs wait
def test_a_run_that_asks_for_more_than_is_there_waits_says_so_and_trains(cluster, config, tmp_path):
    done = launch("train", "--config", config, f"run.path={tmp_path / 'run'}", "cluster.num_workers=3",
                  env=cluster.driver())  # fmt: skip
    assert "waiting for room for 3 workers of 1 CPU each: there is room for" in done.stderr
    assert "there is room for 3 workers of 1 CPU each\n" in done.stderr
    assert "3 workers, by rank processes" in done.stdout + done.stderr
    assert "test @20" in done.stdout
    assert len(metrics_of(tmp_path / "run")) == 2
