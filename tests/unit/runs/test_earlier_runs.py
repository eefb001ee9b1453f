"""A run folder that version 0.1 has written goes on with the same bits."""

import hashlib
import json
import shutil

import pytest
import torch

from diffmm_dist.records import sealed, unsealed
from diffmm_dist.training.trained import load_trained
from tests.support import damage
from tests.support.builders import checkpoint_tensors, metrics_of, small_config, synthetic_dataset, train_alone


def config_of(folder, name, model, epochs):
    train = {"epochs": 1 if model == "popularity" else epochs}
    settings = {"model": {"name": model}, "monitoring": {"tensorboard": False}}
    return small_config(folder / "data", folder / name, train=train, **settings)


def as_written_earlier(run):
    """Take out of a run folder what version 0.1 did not write."""
    identity = unsealed(json.loads((run / "run.json").read_text()))
    del identity["format"]
    (run / "run.json").write_text(json.dumps(sealed(identity)))
    for path in (run / "checkpoints").iterdir():
        index = unsealed(json.loads((path / "index.json").read_text()))
        index["tensors"] = {earlier_name(name): entry for name, entry in index["tensors"].items()}
        (path / "index.json").write_text(json.dumps(sealed(index)))
        state = unsealed(json.loads((path / "state.json").read_text()))
        del state["cursor"]["stage"], state["ended"]
        state["index"] = hashlib.sha256((path / "index.json").read_bytes()).hexdigest()
        (path / "state.json").write_text(json.dumps(sealed(state)))
    config = run / "config.yaml"
    damage.forge_config(run, "\n  patience: null", "")
    assert "patience" not in config.read_text()


def earlier_name(name):
    parts = name.split("/")
    return "/".join([*parts[:2], *parts[3:]]) if parts[0] == "optimizer" else name


@pytest.mark.parametrize("model", ["diffmm", "lightgcn", "popularity"])
def test_a_run_of_the_version_before_stages_goes_on(tmp_path, model):
    synthetic_dataset(tmp_path / "data")
    whole = train_alone(config_of(tmp_path, "whole", model, 3))
    before = train_alone(config_of(tmp_path, "run", model, 2))
    as_written_earlier(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "read")
    trained = load_trained(str(tmp_path / "read"))
    assert trained.evaluation([5, 20]).measure(trained.model, "test") == before["test"]
    result = train_alone(config_of(tmp_path, "run", model, 3))
    assert (result["test"], result["best_epoch"], result["epochs"]) == (
        whole["test"], whole["best_epoch"], whole["epochs"],
    )  # fmt: skip
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    found, expected = (
        checkpoint_tensors(sorted((tmp_path / name / "checkpoints").iterdir())[-1]) for name in ("run", "whole")
    )
    if model != "popularity":  # which has nothing more to write
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
