"""One worker through a local Ray gives what local mode gives."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest

from tests.support.builders import ROOT, launch, metrics_of, synthetic_dataset, write_config
from tests.support.processes import assert_same_result, checkpoints, wait_until
from tests.support.sockets import descendants, listening

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    dataset = synthetic_dataset(folder / "d", users=400, items=200, interactions=8000)
    return write_config(
        folder / "c.yaml", data={"path": dataset}, run={"path": "to be set"}, train={"epochs": 4, "batch_size": 256}
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory, config):
    run = tmp_path_factory.mktemp("local") / "run"
    launch("train", "--config", config, f"run.path={run}")
    return run


def test_the_same_result_through_ray(config, local, tmp_path):
    done = launch("train", "--config", config, "run.path=run", "cluster.num_workers=1", cwd=tmp_path)
    assert "test @20" in done.stdout
    assert_same_result(tmp_path / "run", local)
    assert "Failed to query Ray Train Controller" not in done.stdout + done.stderr


@pytest.mark.timeout(600)  # starting Ray takes long on a busy machine
def test_interrupted_it_saves_and_goes_on_locally(config, local, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "launch.py"), "train", "--config", config, f"run.path={run}"]
    process = subprocess.Popen(
        [*command, "cluster.num_workers=1", "train.epochs=4000"], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: checkpoints(run)[-1:] >= ["epoch-00002"], process, seconds=400)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "a checkpoint is saved" in err
    saved = checkpoints(run)[-1]
    more = int(saved.split("-")[1]) + 1
    again = launch("train", "--config", config, f"run.path={run}", f"train.epochs={more}")
    assert f"resuming {run} from checkpoint {saved}" in again.stderr
    assert metrics_of(run)[:2] == metrics_of(local)[:2]


SEED = int(os.environ.get("DIFFMM_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
KILLED = ["worker"] * 7 + ["driver"] * 2 + ["both"]
TWO = ["cluster.num_workers=2", "cluster.threads_per_worker=1", f"cluster.max_failures={len(KILLED)}"]


class TwoWorkers:
    """A run of two workers on a Ray of its own, in a process that can be killed."""

    def __init__(self, config, run, log, *overrides):
        self.run, self._log, self._num_groups = run, log, 0
        command = [sys.executable, str(ROOT / "launch.py"), "train", "--config", config, f"run.path={run}", *TWO]
        self.process = subprocess.Popen([*command, *overrides], stdout=log.open("w"), stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    @property
    def log(self):
        return self._log.read_text()

    def workers(self):
        """The processes of every group of workers so far, by rank."""
        return re.findall(r"2 workers, by rank processes (\d+), (\d+)", self.log)

    def until(self, condition):
        """Wait; return whether the run still goes on."""
        deadline = time.monotonic() + 400
        while self.process.poll() is None and not condition():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.005)
        return self.process.poll() is None

    def until_new_workers_have_trained(self, seconds):
        """Wait; return whether the run still goes on."""
        if not self.until(lambda: len(self.workers()) > self._num_groups):
            return False
        self._num_groups, after = len(self.workers()), time.monotonic() + seconds
        return self.until(lambda: time.monotonic() >= after)

    def finish(self):
        assert self.process.wait(timeout=400) == 0, self.log


@pytest.mark.timeout(900)
def test_two_workers_give_the_same_and_listen_on_this_machine_alone(config, local, two_workers):
    run, sockets = two_workers
    for record, expected in zip(metrics_of(run), metrics_of(local), strict=True):
        assert record == pytest.approx(expected, rel=1e-3, abs=1e-4)
    others = {found for found in sockets if not ip_address(found[0].removeprefix("::ffff:")).is_loopback}
    assert len({pid for _, _, pid in sockets}) > 4  # the driver, Ray's servers, both workers
    assert not others


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, config):
    """A run that nothing disturbed, and where its processes listened meanwhile."""
    folder = tmp_path_factory.mktemp("whole")
    with TwoWorkers(config, folder / "run", folder / "log") as whole:
        assert whole.until(lambda: checkpoints(whole.run)), whole.log
        sockets = listening(descendants(whole.process.pid))
        whole.finish()
    return folder / "run", sockets


@pytest.mark.timeout(1500)
def test_two_workers_killed_at_random_moments_end_with_the_same_bits(config, two_workers, tmp_path):
    """Kill -9 a worker: Ray starts both again. Kill the driver, or all of them: the same command goes on."""
    print(f"DIFFMM_TEST_SEED={SEED}")
    drawn = random.Random(SEED)
    kills, num_finished = drawn.sample(KILLED, len(KILLED)), 0
    while True:
        run = tmp_path / f"run-{num_finished}"
        with TwoWorkers(config, run, tmp_path / "log", "checkpoint.every_steps=7") as training:
            if end_early(training, kills, drawn):
                continue
            training.finish()
        assert_same_result(run, two_workers[0])
        assert not [path for path in run.rglob("*") if "partial" in path.name]
        num_finished += 1
        if not kills:
            return


def end_early(training, kills, drawn):
    """Kill workers until the driver is to be killed too, or the run is done; return whether the driver was."""
    while kills:
        if not training.until_new_workers_have_trained(drawn.uniform(0, 3)):
            return False  # it was faster
        victim, workers = kills.pop(), training.workers()[-1]
        if victim != "driver":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(drawn.choice(workers)), signal.SIGKILL)
        if victim != "worker":
            training.process.kill()
            return True
    return False


def test_more_workers_than_the_cluster_holds_are_refused_with_both_numbers(config, tmp_path):
    outcome = launch(
        "train", "--config", config, f"run.path={tmp_path / 'run'}", "cluster.num_workers=900", check=False
    )
    assert outcome.returncode == 1
    last = outcome.stderr.splitlines()[-1]
    wanted = (
        r"error: cluster.num_workers=900 needs room for 900 workers of 1 CPU each, and the cluster has room for \d+ "
        r"\(1 node of \d+ CPUs?\); lower it"
    )
    assert re.search(wanted, last), last


@pytest.mark.timeout(600)
def test_home_and_temporary_folder_that_cannot_be_written(config, tmp_path):
    """Neither can be made below a file, not even by root, as neither can where the disk is read-only."""
    (tmp_path / "file").write_text("")
    places = {"HOME": str(tmp_path / "file" / "home"), "TMPDIR": str(tmp_path / "file" / "tmp")}
    done = launch("train", "--config", config, f"run.path={tmp_path / 'run'}", "cluster.num_workers=1",
                  env=places, timeout=500)  # fmt: skip
    assert "test @20" in done.stdout


def test_what_the_user_can_put_right_is_one_sentence(config, tmp_path):
    outcome = launch(
        "train", "--config", config, f"run.path={tmp_path / 'run'}", "cluster.num_workers=1",
        "data.modalities=[visul]", check=False,
    )  # fmt: skip
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: dataset ")
    assert "did you mean 'visual'" in outcome.stderr
