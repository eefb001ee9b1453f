"""One worker through a local Ray gives what local mode gives."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.builders import ROOT, launch, metrics_of, synthetic_dataset, write_config
from tests.support.processes import assert_same_result, checkpoints, wait_until

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


@pytest.mark.timeout(900)
def test_two_workers_give_the_same_and_a_killed_one_costs_nothing(config, local, tmp_path):
    """Kill -9 one of two workers inside an epoch: Ray starts both again, and the run ends as an undisturbed one."""
    two = ["cluster.num_workers=2", "cluster.threads_per_worker=1"]
    launch("train", "--config", config, f"run.path={tmp_path / 'whole'}", *two, timeout=400)
    for record, expected in zip(metrics_of(tmp_path / "whole"), metrics_of(local), strict=True):
        assert record == pytest.approx(expected, rel=1e-3, abs=1e-4)
    run = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "launch.py"), "train", "--config", config, f"run.path={run}", *two]
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([*command, "checkpoint.every_steps=7"], stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: any("phase" in name for name in checkpoints(run)), process, seconds=400)
        pid = re.search(r"2 workers, by rank processes \d+, (\d+)", (tmp_path / "log").read_text()).group(1)
        os.kill(int(pid), signal.SIGKILL)
        assert process.wait(timeout=400) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
    assert f"resuming {run} from checkpoint epoch-0000" in (tmp_path / "log").read_text()
    assert_same_result(run, tmp_path / "whole")


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
