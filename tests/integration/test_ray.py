"""One worker through a local Ray gives what local mode gives."""

import re
import signal
import subprocess
import sys

import pytest

from tests.support.builders import ROOT, launch, metrics_of
from tests.support.forked import run as run_here
from tests.support.processes import assert_same_result, checkpoints, wait_until

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.mark.timeout(600)
def test_the_same_result_through_ray_where_no_folder_of_its_own_can_be_written(short_config, short_run, tmp_path):
    """Neither can be made below a file, not even by root, as neither can where the disk is read-only."""
    (tmp_path / "file").write_text("")
    places = {"HOME": str(tmp_path / "file" / "home"), "TMPDIR": str(tmp_path / "file" / "tmp")}
    done = launch("train", "--config", short_config, "run.path=run", "cluster.num_workers=1", cwd=tmp_path, env=places,
                  timeout=500)  # fmt: skip
    assert "test @20" in done.stdout
    assert_same_result(tmp_path / "run", short_run)
    assert "Failed to query Ray Train Controller" not in done.stdout + done.stderr


@pytest.mark.timeout(600)  # starting Ray takes long on a busy machine
def test_interrupted_it_saves_and_goes_on_locally(short_config, short_run, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "launch.py"), "train", "--config", short_config, f"run.path={run}"]
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
    again = run_here(tmp_path / "log", "train", "--config", short_config, f"run.path={run}", f"train.epochs={more}")
    assert f"resuming {run} from checkpoint {saved}" in again
    assert metrics_of(run)[:2] == metrics_of(short_run)[:2]


def test_more_workers_than_the_cluster_holds_are_refused_with_both_numbers(short_config, tmp_path):
    outcome = launch(
        "train", "--config", short_config, f"run.path={tmp_path / 'run'}", "cluster.num_workers=900", check=False
    )
    assert outcome.returncode == 1
    last = outcome.stderr.splitlines()[-1]
    wanted = (
        r"error: cluster.num_workers=900 needs room for 900 workers of 1 CPU each, and the cluster has room for \d+ "
        r"\(1 node of \d+ CPUs?\); lower it"
    )
    assert re.search(wanted, last), last


def test_what_the_user_can_put_right_is_one_sentence(short_config, tmp_path):
    outcome = launch(
        "train", "--config", short_config, f"run.path={tmp_path / 'run'}", "cluster.num_workers=1",
        "data.modalities=[visul]", check=False,
    )  # fmt: skip
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: dataset ")
    assert "did you mean 'visual'" in outcome.stderr
