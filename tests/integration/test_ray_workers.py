"""Two workers through a local Ray: what listens meanwhile, and kills at random moments, again and again."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest

from diffmm_dist.bench.processes import descendants
from tests.support.builders import ROOT, metrics_of
from tests.support.processes import assert_same_result, checkpoints
from tests.support.sockets import listening

pytest.importorskip("ray", reason="Ray is not installed")

SEED = int(os.environ.get("DIFFMM_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
KILLED = ["worker"] * 2 + ["driver", "both"]
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
            time.sleep(0.05)
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
def test_two_workers_give_the_same_and_listen_on_this_machine_alone(short_run, two_workers):
    run, sockets, log, _ = two_workers
    assert "; 2 here, " in log  # of the memory of this machine, which they share
    check_output(log)
    for record, expected in zip(metrics_of(run), metrics_of(short_run), strict=True):
        assert record == pytest.approx(expected, rel=1e-3, abs=1e-4)
    others = {found for found in sockets if not ip_address(found[0].removeprefix("::ffff:")).is_loopback}
    assert len({pid for _, _, pid in sockets}) > 4  # the driver, Ray's servers, both workers
    assert not others


def check_output(log):
    """Each epoch has one line of the first worker's and one for machines, and nothing is drawn or coloured."""
    assert re.findall(r"^\(RayTrainWorker pid=\d+\) epoch (\d) of 0\.\.3: valid recall@20", log, re.M) == list("0123")
    printed = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line.get("epoch") for line in printed] == [0, 1, 2, 3, None]
    assert printed[-1]["result"]["epochs"] == 4
    assert "\x1b" not in log
    assert "\r" not in log
    assert "Reporting training result" not in log


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, short_config):
    """A run that nothing disturbed, where its processes listened meanwhile, its log, and how long its workers lived."""
    folder = tmp_path_factory.mktemp("whole")
    with TwoWorkers(short_config, folder / "run", folder / "log", "--json") as whole:
        assert whole.until(whole.workers), whole.log
        start = time.monotonic()
        assert whole.until(lambda: checkpoints(whole.run)), whole.log
        sockets = listening(descendants(whole.process.pid))
        whole.until(lambda: (whole.run / "result.json").exists())
        seconds = time.monotonic() - start
        whole.finish()
    return folder / "run", sockets, whole.log, seconds


@pytest.mark.timeout(1500)
def test_two_workers_killed_at_random_moments_end_with_the_same_bits(short_config, two_workers, tmp_path):
    """Kill -9 a worker: Ray starts both again. Kill the driver, or all of them: the same command goes on."""
    print(f"DIFFMM_TEST_SEED={SEED}")
    drawn, (undisturbed, _, _, seconds) = random.Random(SEED), two_workers
    kills, num_finished = drawn.sample(KILLED, len(KILLED)), 0
    while True:
        run = tmp_path / f"run-{num_finished}"
        with TwoWorkers(short_config, run, tmp_path / "log", "checkpoint.every_steps=7") as training:
            if end_early(training, kills, drawn, patience_s=seconds / 4):
                continue
            training.finish()
        assert_same_result(run, undisturbed)
        assert not [path for path in run.rglob("*") if "partial" in path.name]
        num_finished += 1
        if not kills:
            return


def end_early(training, kills, drawn, *, patience_s):
    """Kill workers until the driver is to be killed too, or the run is done; return whether the driver was."""
    while kills:
        if not training.until_new_workers_have_trained(drawn.uniform(0, patience_s)):
            return False  # it was faster
        victim, workers = kills.pop(), training.workers()[-1]
        if victim != "driver":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(drawn.choice(workers)), signal.SIGKILL)
        if victim != "worker":
            training.process.kill()
            return True
    return False
