"""Kills at random moments, again and again: the run ends with the bits of one that nothing disturbed."""

import os
import random
import signal
import time

import pytest

from diffmm_dist.interrupts import ENDED
from tests.support.builders import write_config
from tests.support.forked import forked, run
from tests.support.processes import assert_same_result, checkpoints

SEED = int(os.environ.get("DIFFMM_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
NUM_KILLS = 25


@pytest.fixture(scope="module")
def config(tmp_path_factory, dataset):
    return write_config(
        tmp_path_factory.mktemp("config") / "c.yaml", data={"path": dataset}, run={"path": "to be set"},
        train={"epochs": 5, "batch_size": 64}, checkpoint={"every_steps": 19},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    run(folder / "log", "train", "--config", config, f"run.path={folder / 'run'}")
    return folder / "run", time.monotonic() - start


# What a run is doing when it is killed; `at any time` is drawn anew for every kill.
MOMENTS = {
    "at the start": lambda run: (run / "run.json").exists(),
    "while saving": lambda run: checkpoints(run, "partial-"),
    "inside an epoch": lambda run: any("phase" in name for name in checkpoints(run)),
    "after a result was begun": lambda run: checkpoints(run)[-1:] >= ["epoch-00004"],
}
ENDS = {"kill": (signal.SIGKILL,), "term": (signal.SIGTERM,), "interrupt": (signal.SIGINT,),
        "term twice": (signal.SIGTERM, signal.SIGTERM)}  # fmt: skip


class Loop:
    """Runs that are ended early; each finished one is compared and the next begins in a new folder."""

    def __init__(self, config, undisturbed, folder):
        self.random = random.Random(SEED)
        self.config, (self.expected, self.seconds), self.folder = config, undisturbed, folder
        self.num_finished = self.num_ended = 0

    @property
    def run(self):
        return self.folder / f"run-{self.num_finished}"

    def once(self, moment, end):
        """Start the run and end it at a moment; return whether it was still running then."""
        before = checkpoints(self.run)
        with forked(self.folder / "log", "train", "--config", self.config, f"run.path={self.run}") as process:
            deadline = time.monotonic() + self.random.uniform(0, self.seconds / 4)
            while process.poll() is None and not self._is_time(moment, deadline):
                time.sleep(0.001)
            for number in ENDS[end]:
                if process.poll() is None:
                    process.send(number)
                    time.sleep(self.random.uniform(0, 0.02))
            status = process.wait()
            self._check(process, status, end, before)
        if status == 0:
            assert_same_result(self.run, self.expected)
            self.num_finished += 1
        else:
            self.num_ended += 1

    def _is_time(self, moment, deadline):
        return time.monotonic() >= deadline if moment == "at any time" else MOMENTS[moment](self.run)

    def _check(self, process, status, end, before):
        assert "Traceback" not in process.log, process.log
        assert status in (0, -signal.SIGKILL if end == "kill" else 130), process.log
        if before and checkpoints(self.run) != before:
            assert f"resuming {self.run} from checkpoint {before[-1]}: epoch " in process.log
        if status == 130:
            last = process.log.splitlines()[-1]
            saved = "a checkpoint is saved, the same command goes on from there"
            told = checkpoints(self.run)[-1:] or ["no complete checkpoint yet"]
            at_once = last.startswith("stopped at once, without saving; ") and told[0] in last
            too_early = last == ENDED and checkpoints(self.run) == before  # it had not begun to train
            assert saved in last or at_once or too_early, last

    def finish(self):
        """Let the last run end, and look what the kills have left."""
        before = checkpoints(self.run)
        log = run(self.folder / "log", "train", "--config", self.config, f"run.path={self.run}")
        assert not before or f"resuming {self.run} from checkpoint {before[-1]}: epoch " in log
        assert_same_result(self.run, self.expected)
        left = [path for path in self.run.rglob("*") if "partial" in path.name]
        assert not left


@pytest.mark.timeout(600)
def test_a_run_in_this_process(config, undisturbed, tmp_path):
    print(f"DIFFMM_TEST_SEED={SEED}")
    loop = Loop(config, undisturbed, tmp_path)
    for moment in MOMENTS:
        loop.once(moment, "kill")
    for end in ("term", "interrupt", "term twice", "term twice"):
        loop.once("at any time", end)
    num_kills = len(MOMENTS)
    while num_kills < NUM_KILLS:
        ended = loop.num_ended
        loop.once(loop.random.choice(["at any time", "at any time", "while saving"]), "kill")
        num_kills += loop.num_ended - ended
    loop.finish()
    assert loop.num_ended >= NUM_KILLS
