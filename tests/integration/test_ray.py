"""One worker through a local Ray gives what local mode gives."""

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
        folder / "c.yaml", data={"path": dataset}, run={"path": "to be set"}, train={"epochs": 4, "batch_size": 64}
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


def test_what_the_user_can_put_right_is_one_sentence(config, tmp_path):
    outcome = launch(
        "train", "--config", config, f"run.path={tmp_path / 'run'}", "cluster.num_workers=1",
        "data.modalities=[visul]", check=False,
    )  # fmt: skip
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: dataset ")
    assert "did you mean 'visual'" in outcome.stderr
