"""Several processes on one run on S3: one writes, and one that lost its place finds out before it writes again.

The store keeps the conditions of writes, as S3 does, but for the last test's.
"""

import signal
import time
from multiprocessing import get_context

import pytest

from diffmm_dist.runs.run_folder import RunFolder
from tests.support.builders import metrics_of, small_config, synthetic_dataset, write_config
from tests.support.forked import calling, forked, run, stopped
from tests.support.processes import assert_same_result, wait_until
from tests.support.s3 import FailingProxy

pytestmark = pytest.mark.timeout(400)
LEASE_S = 3.0
NUM_STARTS = 20


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """A dataset, and a run of it on the disk that nothing disturbed."""
    folder = tmp_path_factory.mktemp("local")
    dataset = synthetic_dataset(folder / "d", users=400, items=200, interactions=8000)
    config = write_config(
        folder / "c.yaml", data={"path": dataset}, run={"path": str(folder / "run")},
        train={"epochs": 3, "batch_size": 64}, checkpoint={"every_steps": 40}, cluster={"lease_s": LEASE_S},
    )  # fmt: skip
    run(folder / "log", "train", "--config", config)
    return config, folder / "run"


class Writers:
    """The processes of one run, each with a way of its own to the store."""

    def __init__(self, s3, place, local_run, folder, proxies):
        self.config, self.expected = local_run
        self.run = f"{place}/run"
        self.folder = s3.on_disk(self.run)
        self._s3, self._logs, self._proxies = s3, folder, proxies
        self.arguments = ["train", "--config", self.config, f"run.path={self.run}"]

    def environment(self, number):
        return self._s3.environment(self._proxies[number].port)

    def started(self, number, *overrides):
        log = self._logs / f"log-{number}"
        return forked(log, *self.arguments, *overrides, env=self.environment(number))

    def complete(self):
        return sorted(path.parent.name for path in self.folder.glob("checkpoints/*/state.json"))

    def files_of(self, writer):
        paths = self.folder.glob(f"checkpoints/*-writer-{writer:05d}/*")
        return {path: path.read_bytes() for path in paths}

    def until_saved_by(self, writer, process):
        wait_until(lambda: any(name.endswith(f"-writer-{writer:05d}") for name in self.complete()), process)

    def finish(self):
        """The same command once more ends as the undisturbed run; every epoch is recorded once."""
        run(self._logs / "finish", *self.arguments, env=self.environment(0))
        assert_same_result(self.folder, self.expected)
        writers = [record["writer"] for record in RunFolder(str(self.folder)).records()]
        assert writers == sorted(writers)
        names = {path.name for path in self.folder.glob("checkpoints/*")}
        assert names == set(self.complete())


@pytest.fixture
def writers(s3, place, local_run, tmp_path):
    with FailingProxy(s3.port, s3.folder) as first, FailingProxy(s3.port, s3.folder) as second:
        yield Writers(s3, place, local_run, tmp_path, [first, second])


AWAY = ["stopped", "cut off", "at /state.json"]


@pytest.mark.parametrize("away", AWAY)
def test_one_that_was_away_for_longer_than_the_lease_writes_nothing_more(writers, away):
    """The other takes over by its own clock, and goes on from what the first has left."""
    endless = "train.epochs=4000"
    with writers.started(0, endless) as first:
        writers.until_saved_by(1, first)
        if away == "stopped":
            stopped(first)
        elif away == "cut off":
            writers._proxies[0].mode = "gone"
        else:  # in the middle of a request
            writers._proxies[0].held = away.removeprefix("at ").encode()
            wait_until(lambda: writers._proxies[0].num_held > 0, first)
            writers._proxies[0].mode = "gone"
        with writers.started(1, endless) as second:
            writers.until_saved_by(2, second)
            assert "waiting for another process to leave" in second.log
            before = writers.files_of(1)
            writers._proxies[0].mode, writers._proxies[0].held = "pass", b""
            first.send(signal.SIGCONT)
            status = first.wait()
            last = first.log.splitlines()[-1]
            assert status == 3, first.log
            assert last.startswith(f"stopped: the run {writers.run} was taken over by ")
            assert f"(process {second.pid}), its writer 2; this one, its writer 1, was at epoch " in last
            assert writers.files_of(1).items() <= before.items()
            at_that_time = writers.complete()
            wait_until(lambda: writers.complete() != at_that_time, second)
            second.send(signal.SIGTERM)
            assert second.wait() == 130, second.log
            assert "a checkpoint is saved" in second.log
    records = RunFolder(str(writers.folder)).records()
    assert [record["epoch"] for record in records] == list(range(len(records)))
    assert {record["writer"] for record in records} <= {1, 2}


def test_a_holder_that_is_cut_off_for_a_while_goes_on_if_nobody_took_its_place(writers):
    proxy = writers._proxies[0]
    with writers.started(0) as first:
        writers.until_saved_by(1, first)
        stopped(first)  # so that it asks for nothing but what its renewals did
        time.sleep(1.2 * LEASE_S)
        proxy.mode = "busy"
        first.send(signal.SIGCONT)
        wait_until(lambda: proxy.num_failed > 0, first)
        proxy.mode = "pass"
        assert first.wait() == 0, first.log
    assert_same_result(writers.folder, writers.expected)


def test_what_a_killed_one_has_left_is_removed_and_the_run_ends_the_same(writers):
    """Killed while it saves: the next waits for a lease, by no clock but its own, and removes the half."""
    proxy = writers._proxies[0]
    with writers.started(0) as first:
        writers.until_saved_by(1, first)
        proxy.held = b"/state.json"
        wait_until(lambda: proxy.num_held > 0, first)
        first.send(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    proxy.held = b""
    half = {path.name for path in writers.folder.glob("checkpoints/*")} - set(writers.complete())
    assert len(half) == 1
    writers.finish()


def test_a_second_signal_while_saving_ends_with_the_last_complete_checkpoint(writers):
    proxy = writers._proxies[0]
    with writers.started(0) as first:
        writers.until_saved_by(1, first)
        proxy.held = b"/state.json"
        first.send(signal.SIGTERM)
        wait_until(lambda: proxy.num_held > 0, first)
        first.send(signal.SIGTERM)
        assert first.wait() == 130, first.log
        proxy.held = b""
        last = first.log.splitlines()[-1]
        assert last == (f"stopped at once, without saving; the last complete checkpoint of {writers.run} is "
                        f"{writers.complete()[-1]}, and the same command goes on from it")  # fmt: skip
    writers.finish()


def claim_again_and_again(barrier, results, config, skew):
    """Claim many runs, each at the same instant as the other process; keep what is won until the other has lost."""
    from diffmm_dist.errors import UserError
    from diffmm_dist.runs.run_folder import RunFolder

    real = time.time
    time.time = lambda: real() + skew
    for number in range(NUM_STARTS):
        folder = RunFolder(f"{config.run.path}-{number}", lease_s=LEASE_S)
        barrier.wait(timeout=60)
        try:
            folder.claim(config, fingerprint="abc")
            folder.check()
            results.put((number, "won"))
        except UserError as error:
            results.put((number, str(error)))
        barrier.wait(timeout=60)
        folder.release()


def test_of_two_that_start_at_the_same_instant_one_trains(writers, tmp_path):
    """Twenty times, with clocks that are a minute and a half apart."""
    context = get_context("forkserver")
    barrier, results = context.Barrier(2), context.Queue()
    config = small_config("data", writers.run)
    work = claim_again_and_again, barrier, results, config
    with (
        calling(tmp_path / "a", *work, 40, env=writers.environment(0)) as first,
        calling(tmp_path / "b", *work, -50, env=writers.environment(1)) as second,
    ):
        found = [results.get(timeout=120) for _ in range(2 * NUM_STARTS)]
        assert (first.wait(), second.wait()) == (0, 0), first.log + second.log
    for number in range(NUM_STARTS):
        outcomes = sorted(text for index, text in found if index == number)
        assert outcomes[1] == "won", outcomes
        assert outcomes[0].startswith("another process is training in"), outcomes


def test_without_conditions_it_is_said_what_is_not_guaranteed(s3, place, local_run, tmp_path):
    config, expected = local_run
    arguments = ["train", "--config", config, f"run.path={place}/run"]
    with forked(tmp_path / "log", *arguments, "train.epochs=4000", env=s3.environment()) as first:
        wait_until(lambda: list(s3.on_disk(f"{place}/run").glob("checkpoints/*/state.json")), first)
        assert first.log.count("does not honour conditional writes, so it is not guaranteed") == 1
        with forked(tmp_path / "other", *arguments, env=s3.environment()) as second:
            assert second.wait() == 1
            assert f"(process {first.pid})" in second.log.splitlines()[-1]
        first.send(signal.SIGTERM)
        assert first.wait() == 130, first.log
    ours, wanted = metrics_of(s3.on_disk(f"{place}/run")), metrics_of(expected)
    together = min(len(ours), len(wanted))
    assert ours[:together] == wanted[:together]
