"""S3 fails while a run trains on it: the run waits, or ends with a sentence and goes on later with the same numbers."""

import subprocess
import time

import pytest

from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.statuses import TRY_AGAIN
from diffmm_dist.stores.s3 import file_system
from tests.support.builders import synthetic_dataset, write_config
from tests.support.forked import launched as launch
from tests.support.processes import assert_same_result, started, wait_until
from tests.support.s3 import FailingProxy

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """A configuration, a run of it on the disk that nothing disturbed, and its dataset."""
    folder = tmp_path_factory.mktemp("local")
    dataset = synthetic_dataset(folder / "d", users=400, items=400, interactions=8000, modalities={"visual": 64})
    config = write_config(
        folder / "c.yaml", data={"path": dataset}, run={"path": "to be set"}, train={"epochs": 3, "batch_size": 256}
    )
    launch("train", "--config", config, f"run.path={folder / 'run'}")
    return config, folder / "run", dataset


@pytest.fixture
def proxy(s3):
    with FailingProxy(s3.port, s3.folder) as proxy:
        yield proxy


class Training:
    """The run under test, its S3 behind the proxy."""

    def __init__(self, s3, proxy, place, local_run):
        config, self.undisturbed, dataset = local_run
        file_system().put(dataset, f"{place}/data", recursive=True)
        self.run = f"{place}/run"
        self.arguments = ["train", "--config", config, f"data.path={place}/data", f"run.path={self.run}",
                          "checkpoint.every_steps=13", "cluster.threads_per_worker=1", "cluster.lease_s=5"]  # fmt: skip
        self.environment = s3.environment(proxy.port) | {"AWS_MAX_ATTEMPTS": "5"}
        self.folder = s3.on_disk(self.run)

    def started(self):
        return started(*self.arguments, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def complete_checkpoints(self):
        return sorted(path.parent.name for path in self.folder.glob("checkpoints/*/state.json"))

    def until_inside_an_epoch(self, process):
        wait_until(lambda: any("phase" in name for name in self.complete_checkpoints()), process, 120)

    def again(self):
        return launch(*self.arguments, env=self.environment, timeout=200)

    def check_same(self):
        assert_same_result(self.folder, self.undisturbed)

    def retries(self):
        return RunFolder(str(self.folder)).records()[-1]["storage/retries"]


@pytest.fixture
def training(s3, proxy, place, local_run):
    return Training(s3, proxy, place, local_run)


def test_503_for_a_while(training, proxy):
    with training.started() as process:
        training.until_inside_an_epoch(process)
        proxy.mode = "busy"
        wait_until(lambda: proxy.num_failed > 0, process)
        time.sleep(3)
        proxy.mode = "pass"
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    training.check_same()
    assert training.retries() >= 1


def test_connections_cut_in_the_middle_of_objects(training, proxy):
    proxy.mode, proxy.num_cuts = "cut", 2
    training.again()
    assert proxy.num_cuts == 0
    training.check_same()
    assert training.retries() >= 2


def test_gone_for_longer_than_the_retries_allow(training, proxy):
    training.environment["AWS_MAX_ATTEMPTS"] = "2"
    with training.started() as process:
        training.until_inside_an_epoch(process)
        proxy.mode = "gone"
        _, err = process.communicate(timeout=200)
    assert process.returncode == TRY_AGAIN
    last = err.splitlines()[-1]
    assert last.startswith("error: cannot")
    assert training.run in last
    before = training.complete_checkpoints()
    proxy.mode = "pass"
    again = training.again()
    assert f"from checkpoint {before[-1]}" in again.stderr
    training.check_same()


REFUSED = [
    ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "pass", "check AWS_SECRET_ACCESS_KEY"),
    ({"AWS_ACCESS_KEY_ID": "not-the-key"}, "pass", "check AWS_ACCESS_KEY_ID"),
    ({"AWS_SESSION_TOKEN": "old-token"}, "expired", "renew the credentials"),
    ({}, "read-only", "give this key the right to write there"),
]


@pytest.mark.parametrize(("variables", "mode", "remedy"), REFUSED)
def test_a_refusal_is_one_sentence_within_seconds_and_tells_no_secret(training, proxy, variables, mode, remedy):
    proxy.mode = mode
    environment = training.environment | variables
    start = time.monotonic()
    done = launch(*training.arguments, env=environment, check=False, timeout=60)
    assert time.monotonic() - start < 40
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert remedy in lines[-1]
    assert training.run.removesuffix("/run") in lines[-1]
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert environment.get(name, "nothing") not in done.stdout + done.stderr
    assert not training.complete_checkpoints()


def test_a_bucket_that_is_not_there(training):
    arguments = [word.replace("s3://bucket/", "s3://no-such-bucket/") for word in training.arguments]
    done = launch(*arguments, env=training.environment, check=False, timeout=60)
    assert done.returncode == 1
    assert "no-such-bucket" in done.stderr.splitlines()[-1]
