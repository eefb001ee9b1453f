"""Jobs on a Ray cluster of three nodes, with data and runs on a real S3 server, and what may go wrong.

Its autoscaler starts with the head alone, which has no CPU for workers. What is undisturbed is trained by two workers
without Ray and S3, and every run here of two workers has its bits.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from functools import partial

import pytest

from diffmm_dist.runs.config import load_config
from diffmm_dist.stores.s3 import file_system
from tests.support.builders import ROOT, metrics_of, synthetic_dataset, train_alone
from tests.support.processes import assert_same_result, free_port, started, wait_until
from tests.support.s3 import FailingProxy
from tests.support.workers import on_workers

pytest.importorskip("ray", reason="Ray is not installed")

from tests.support.ray_cluster import GrowingCluster

pytestmark = pytest.mark.timeout(400)
LEASE_S = 5
SETTINGS = ["train.epochs=3", "train.batch_size=256", "model.embedding_dim=8", "eval.k=[5,20]", "graph.kernel=csr",
            "model.diffusion.denoiser_hidden_dims=[16]", "cluster.threads_per_worker=1",
            f"cluster.lease_s={LEASE_S}"]  # fmt: skip


@pytest.fixture(scope="module")
def proxy(s3):
    with FailingProxy(s3.port, s3.folder) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def cluster(s3, proxy):
    """A head without CPUs, to which two nodes of one CPU each can come; its way to S3 is the proxy."""
    with GrowingCluster(2, most=2, head_cpus=0, environment=s3.environment(proxy.port)) as cluster:
        cluster.wait_until_ready()
        yield cluster


def train_here(world, words):
    train_alone(load_config("configs/demo.yaml", words))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of two workers without S3 or Ray, and its dataset."""
    folder = tmp_path_factory.mktemp("local")
    dataset = synthetic_dataset(folder / "d", users=400, items=200, interactions=8000)
    words = [f"data.path={dataset}", f"run.path={folder / 'run'}", *SETTINGS]
    more = [*words, f"run.path={folder / 'more'}", "train.epochs=12"]
    on_workers(2, partial(train_here, words=words), partial(train_here, words=more))
    return dataset, folder / "run"


@pytest.fixture
def of_many_epochs(undisturbed):
    """The records of a longer run."""
    return metrics_of(undisturbed[1].with_name("more"))


class Job:
    """A training job: its data and its run on S3, its client a process here."""

    def __init__(self, cluster, s3, place, undisturbed):
        self.cluster = cluster
        dataset, self._expected = undisturbed
        file_system().put(dataset, f"{place}/data", recursive=True)
        self.run = f"{place}/run"
        self.folder = s3.on_disk(self.run)
        self.train = ["--config", "configs/demo.yaml", f"data.path={place}/data", f"run.path={self.run}", *SETTINGS]
        self.log, self._seen = "", 0

    def started(self, *overrides):
        return started("submit", "--address", self.cluster.address, *self.train, *overrides, cwd=ROOT,
                       env=self.cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def until_log(self, process, pattern):
        """Read the job's log until a pattern matches what is new in it; what comes later is new to the next call."""
        while not (match := re.search(pattern, self.log[self._seen :])):
            line = process.stdout.readline()
            assert line, self.log
            self.log += line
        self._seen += match.end()
        return match

    def driver(self):
        """The process number of the job's program."""
        submission = re.search(r"job (raysubmit_\w+)", self.log).group(1)
        (job,) = [job for job in self.cluster.jobs() if job["submission_id"] == submission]
        return int(job["driver_info"]["pid"])

    def finish(self, process, seconds=200):
        out, _ = process.communicate(timeout=seconds)
        self.log += out
        assert process.returncode == 0, self.log

    def has_saved(self, where=""):
        """Whether there is a complete checkpoint, whose name may have to say where."""
        return any(where in path.parent.name for path in self.folder.glob("checkpoints/*/state.json"))

    def inside_an_epoch(self):
        return self.has_saved("phase")

    def check_same(self):
        assert_same_result(self.folder, self._expected)


@pytest.fixture
def job(cluster, s3, place, undisturbed):
    return Job(cluster, s3, place, undisturbed)


def test_workers_come_for_the_readmes_job(job):
    """Through Ray's own command, on nodes that the autoscaler starts for it; then TensorBoard reads the events."""
    assert not job.cluster.raylets()
    words = ["train", *job.train, "cluster.num_workers=2"]
    done = job.cluster.ray("job", "submit", "--working-dir", ".", "--", "python", "launch.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for room for 2 workers of 1 CPU each: there is room for 0" in done.stdout
    assert "test @20" in done.stdout
    lines = [line for line in done.stdout.splitlines() if re.search(r"epoch \d+ of 0\.\.\d+: ", line)]
    assert len(lines) == len(set(re.findall(r"epoch \d+ of ", "".join(lines)))) > 1
    assert not [line for line in lines if "\r" in line or "\x1b" in line]
    assert len(job.cluster.raylets()) == 2
    job.check_same()
    secret = job.cluster.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in done.stdout + done.stderr
    wait_for_tensorboard(job, {"recommend/bpr", "valid/recall@20"})


def wait_for_tensorboard(job, tags):
    """Start TensorBoard on the run and wait until it knows the tags."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", job.run, "--port", str(port), "--host", "127.0.0.1"],
        env={**os.environ, **job.cluster.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"

    def answered():
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return tags <= {tag for run in json.load(answer).values() for tag in run}
        except OSError:
            return False

    try:
        wait_until(answered, server)
    finally:
        server.terminate()
        server.wait(timeout=30)


def lose_a_node(job):
    """Kill -9 a node, of which Ray ends the workers; return the others."""
    *others, lost = job.cluster.raylets()
    os.kill(lost, signal.SIGKILL)
    return others


def test_one_worker_goes_on_without_a_lost_node_and_two_with_another(job, of_many_epochs):
    """Before a driver is killed, which leaves a demand that Ray Train keeps for three minutes; others wait for it."""
    elastic = ["cluster.num_workers=[1,2]", "cluster.resize_check_s=2", "cluster.timeout_s=60", "train.epochs=4000"]
    with job.started(*elastic, "checkpoint.every_steps=20") as process:
        job.until_log(process, r"2 workers, by rank")
        wait_until(job.inside_an_epoch, process)
        with job.cluster.none_comes():
            lose_a_node(job)
            job.until_log(process, r"resuming ")
            alone = len(metrics_of(job.folder))
            wait_until(lambda: len(metrics_of(job.folder)) > alone, process)
            assert len(job.cluster.raylets()) == 1
        job.until_log(process, r"2 workers, by rank")
        job.until_log(process, r"epoch \d+ of ")
        os.kill(job.driver(), signal.SIGTERM)
        job.log += process.communicate(timeout=100)[0]
    assert "a checkpoint is saved" in job.log
    records = metrics_of(job.folder)
    assert len(records) > alone
    for record, expected in zip(records, of_many_epochs, strict=False):
        assert record == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_lost_node_is_waited_for_and_a_killed_driver_can_be_repeated(job):
    """Both workers go on when the autoscaler has started another node. Kill -9 the driver: the same command goes on."""
    with job.started("cluster.num_workers=2", "checkpoint.every_steps=7") as process:
        job.until_log(process, r"2 workers, by rank")
        wait_until(job.inside_an_epoch, process)
        assert len(lose_a_node(job)) == 1
        job.until_log(process, r"2 workers, by rank")
        job.until_log(process, r"resuming ")
        assert len(job.cluster.raylets()) == 2
        os.kill(job.driver(), signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGKILL  # what became of the driver
    job.log, job._seen = "", 0
    with job.started("cluster.num_workers=2") as process:
        job.finish(process)
    assert "resuming" in job.log
    job.check_same()


def test_s3_that_is_slow(job, proxy):
    """Every request takes a while, and in the middle some take longer than the lease: the run waits, and goes on."""
    proxy.latency_s = 0.05
    try:
        with job.started("cluster.num_workers=2") as process:
            wait_until(job.has_saved, process)
            before, proxy.latency_s = proxy.num_late, LEASE_S + 1
            wait_until(lambda: proxy.num_late > before, process)
            proxy.latency_s = 0.05
            job.finish(process)
    finally:
        proxy.latency_s = 0.0
    assert "was taken over" not in job.log
    job.check_same()


def test_a_mistake_stops_its_own_job_where_that_is_asked_for(cluster):
    """As KubeRay needs it, which begins again what failed, but not what was stopped (cluster/kuberay/rayjob.yaml)."""
    variables = json.dumps({"env_vars": {"DIFFMM_STOP_JOB": "1"}})
    done = cluster.ray("job", "submit", "--runtime-env-json", variables, "--", "diffmm-dist", "trian", "no.yaml")
    said = done.stdout + done.stderr
    assert "did you mean 'train'" in said, said
    assert re.search(r"Job 'raysubmit_\w+' was stopped", said), said
