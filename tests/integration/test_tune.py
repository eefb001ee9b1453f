"""A search on a local Ray, killed in the middle: it goes on, repeats nothing, and its best settings can be trained."""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from tests.support.builders import ROOT, launch, synthetic_dataset, write_config
from tests.support.forked import run
from tests.support.processes import wait_until

pytest.importorskip("ray.tune", reason="Ray Tune is not installed")
pytest.importorskip("optuna", reason="Optuna is not installed")
SPACE = {"train.learning_rate": {"log": [1e-4, 1e-1]}, "model.num_layers": {"int": [1, 3]}}


def trials_of(folder):
    place = folder / "tune.json"
    return json.loads(place.read_text())["trials"] if place.exists() else []


def writers_of(folder, trial):
    """Which process has recorded each epoch of a trial."""
    lines = (folder / "trials" / trial["name"] / "metrics.jsonl").read_text().splitlines()
    return [(record["epoch"], record["writer"]) for record in map(json.loads, lines)]


@pytest.mark.timeout(600)
def test_killed_in_the_middle_it_goes_on_and_repeats_nothing(tmp_path):
    dataset = synthetic_dataset(tmp_path / "d", users=200, items=100, interactions=4000)
    config = write_config(
        tmp_path / "c.yaml", data={"path": dataset}, run={"path": "unused"}, model={"name": "lightgcn"},
        train={"epochs": 30}, monitoring={"tensorboard": False},
    )  # fmt: skip
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    out = tmp_path / "search"
    command = ["tune", "--config", config, "--space", str(tmp_path / "space.yaml"), "--out", str(out), "--trials", "4",
               "--parallel", "2", "--first-stop", "5"]  # fmt: skip
    process = subprocess.Popen([sys.executable, str(ROOT / "launch.py"), *command])
    try:
        wait_until(lambda: sorted({one["state"] == "running" for one in trials_of(out)}) == [False, True], process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {one["name"]: one for one in trials_of(out)}
    done = launch(*command, timeout=240)
    after = {one["name"]: one for one in trials_of(out)}
    assert list(after) == ["t000", "t001", "t002", "t003"]
    assert {one["state"] for one in after.values()} <= {"complete", "stopped"}
    for name, one in before.items():
        if one["state"] == "running":
            assert after[name]["values"] == one["values"]
        else:
            assert after[name] == one
    for one in after.values():
        epochs = [epoch for epoch, _ in writers_of(out, one)]
        assert epochs == list(range(len(epochs)))
        assert len(epochs) >= one["epochs"] >= 5
    assert not list(out.glob("trials/*/result.json"))  # test was not measured
    best = max(after.values(), key=lambda one: one["valid"]["recall@20"])
    assert done.stdout.splitlines()[-1].endswith(f"train --config {out / 'best.yaml'}")
    assert best["name"] in (out / "best.yaml").read_text()
    assert "test @20" in run(tmp_path / "log", "train", "--config", out / "best.yaml", "train.epochs=2")
