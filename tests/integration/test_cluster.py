"""Jobs on a real Ray cluster of a head and two nodes, with data and runs on a real S3 server, and what may go wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from diffmm_dist.s3 import file_system
from tests.support.builders import ROOT, launch, metrics_of, synthetic_dataset
from tests.support.processes import free_port, started, wait_until

pytest.importorskip("ray", reason="Ray is not installed")

from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.timeout(900)
SETTINGS = ["train.epochs=3", "train.batch_size=256", "model.embedding_dim=8", "eval.k=[5,20]",
            "model.diffusion.denoiser_hidden_dims=[16]", "cluster.threads_per_worker=1",
            "cluster.lease_s=5"]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(environment):
    with RayCluster(environment) as cluster:
        cluster.add_node()
        cluster.add_node()
        cluster.wait_until_ready()
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run in this process, without S3 or Ray, and its dataset."""
    folder = tmp_path_factory.mktemp("local")
    dataset = synthetic_dataset(folder / "d", users=400, items=200, interactions=8000)
    launch("train", "--config", "configs/demo.yaml", f"data.path={dataset}", f"run.path={folder / 'run'}", *SETTINGS,
           cwd=ROOT)  # fmt: skip
    return dataset, folder / "run"


class Job:
    """A training job: its data and its run on S3, its client a process here."""

    def __init__(self, cluster, s3, place, undisturbed):
        self.cluster = cluster
        dataset, self._expected = undisturbed
        file_system().put(dataset, f"{place}/data", recursive=True)
        self.run = f"{place}/run"
        self.folder = s3.on_disk(self.run)
        self.train = ["--config", "configs/demo.yaml", f"data.path={place}/data", f"run.path={self.run}", *SETTINGS]
        self.log = ""

    def started(self, *overrides):
        return started("submit", "--address", self.cluster.address, *self.train, *overrides, cwd=ROOT,
                       env=self.cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def until_log(self, process, pattern):
        """Read the job's log until a pattern matches."""
        while not (match := re.search(pattern, self.log)):
            line = process.stdout.readline()
            assert line, self.log
            self.log += line
        return match

    def driver(self):
        """The process number of the job's program."""
        submission = re.search(r"job (raysubmit_\w+)", self.log).group(1)
        listed = self.cluster.ray("job", "list").stdout
        (entry,) = [entry for entry in listed.split("JobDetails(") if submission in entry]
        return int(re.search(r"\bpid='(\d+)'", entry).group(1))

    def finish(self, process, seconds=400):
        out, _ = process.communicate(timeout=seconds)
        self.log += out
        assert process.returncode == 0, self.log

    def inside_an_epoch(self):
        return any("phase" in path.parent.name for path in self.folder.glob("checkpoints/*/state.json"))

    def check_same(self):
        result, expected = (json.loads((path / "result.json").read_text()) for path in (self.folder, self._expected))
        for split in ("valid", "test"):
            assert result[split] == pytest.approx(expected[split], abs=0.01)
        for record, wanted in zip(metrics_of(self.folder), metrics_of(self._expected), strict=True):
            assert record["recommend/bpr"] == pytest.approx(wanted["recommend/bpr"], rel=1e-3)


@pytest.fixture
def job(cluster, s3, place, undisturbed):
    return Job(cluster, s3, place, undisturbed)


def test_the_readmes_job_and_its_tensorboard(job):
    """Through Ray's own command; then TensorBoard reads the events from S3."""
    words = ["train", *job.train, "cluster.num_workers=2"]
    done = job.cluster.ray("job", "submit", "--working-dir", ".", "--", "python", "launch.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test @20" in done.stdout
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


def test_a_killed_worker_and_a_killed_driver(job):
    """Kill -9 a worker: the job goes on. Kill the driver: the same command goes on."""
    with job.started("cluster.num_workers=2", "checkpoint.every_steps=7") as process:
        pid = job.until_log(process, r"2 workers, by rank processes \d+, (\d+)").group(1)
        wait_until(job.inside_an_epoch, process)
        os.kill(int(pid), signal.SIGKILL)
        job.until_log(process, r"resuming ")
        os.kill(job.driver(), signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGKILL  # what became of the driver
    job.log = ""
    with job.started("cluster.num_workers=2") as process:
        job.finish(process)
    assert "resuming" in job.log
    job.check_same()


def test_a_killed_node_and_one_that_joins(job):
    """With [1, 2] workers: kill -9 a whole node, and one worker goes on; a node joins, and two do."""
    elastic = ["cluster.num_workers=[1,2]", "cluster.resize_check_s=2", "cluster.timeout_s=60", "train.epochs=25"]
    with job.started(*elastic, "checkpoint.every_steps=20") as process:
        job.until_log(process, r"2 workers, by rank")
        wait_until(job.inside_an_epoch, process)
        job.cluster.kill(job.cluster.nodes.pop())
        job.until_log(process, r"resuming ")
        wait_until(lambda: len(metrics_of(job.folder)) > 2, process)
        job.cluster.add_node()
        before = job.log.count("2 workers, by rank")
        while job.log.count("2 workers, by rank") == before:
            line = process.stdout.readline()
            assert line, job.log
            job.log += line
        time.sleep(1)
        job.finish(process)
    assert len(metrics_of(job.folder)) == 25
