"""A run folder in which something belongs to another run, or stands in another's place, each part intact by itself."""

import os
import shutil

import pytest

from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.training.trained import load_trained
from tests.support import damage
from tests.support.builders import (
    metrics_of,
    progress_at,
    run_checkpoints,
    small_config,
    synthetic_dataset,
    train_alone,
    warnings_in,
)

EPOCHS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one dataset, with other seeds; in both the last epoch but one is the best."""
    folder = tmp_path_factory.mktemp("runs")
    synthetic_dataset(folder / "data")
    for seed in (1, 2):
        train_alone(config_of(folder, f"seed-{seed}", seed))
    return folder


def config_of(folder, name, seed, epochs=EPOCHS):
    settings = {
        "model": {"name": "lightgcn"}, "train": {"epochs": epochs, "learning_rate": 1e-9},
        "monitoring": {"tensorboard": False}, "run": {"seed": seed, "path": str(folder / name)},
    }  # fmt: skip
    return small_config(folder / "data", folder / name, **settings)


@pytest.fixture
def run(runs, tmp_path):
    for name in ("data", "seed-1"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path / "seed-1"


def go_on(run):
    return train_alone(config_of(run.parent, "seed-1", 1, EPOCHS + 1))


def replace(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def test_the_best_epoch_is_not_the_last(run):
    """What follows stands on this."""
    assert sorted(os.listdir(run / "checkpoints")) == ["epoch-00001", "epoch-00003", "epoch-00004"]
    assert load_trained(str(run)).best_epoch == 0


def test_a_checkpoint_of_another_run(runs, run, caplog):
    replace(run / "checkpoints" / "epoch-00004", runs / "seed-2" / "checkpoints" / "epoch-00004")
    before = metrics_of(run)
    assert go_on(run)["notes"] == ["checkpoint epoch-00004 was damaged; the run went on from epoch-00003"]
    assert warnings_in(caplog)[0].startswith(f"{run}/checkpoints/epoch-00004 belongs to another run; restore it")
    assert metrics_of(run)[:EPOCHS] == before


@pytest.mark.parametrize("change", ["another run's", "removed", "a bit"])
def test_the_best_checkpoint(runs, run, change):
    place = run / "checkpoints" / "epoch-00001"
    if change == "a bit":
        damage.flip(place / "__0_0.distcp", 0.1)
    elif change == "removed":
        shutil.rmtree(place)
    else:
        replace(place, runs / "seed-2" / "checkpoints" / "epoch-00001")
    with pytest.raises(DamagedError, match="epoch-00001"):
        load_trained(str(run))


def test_checkpoints_that_changed_places(run, caplog):
    damage.swap(run / "checkpoints" / "epoch-00003", run / "checkpoints" / "epoch-00004")
    shutil.rmtree(run / "checkpoints" / "epoch-00001")
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        go_on(run)
    assert "epoch-00004 is the checkpoint epoch-00003 under another's name" in warnings_in(caplog)[0]


@pytest.mark.parametrize("left", [[], [3]])
def test_a_result_whose_best_epoch_no_checkpoint_knows(run, left):
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)
    for epoch in left:
        run_checkpoints(run / "checkpoints", run=RunFolder(str(run)).run).save({}, progress_at(epoch))
    with pytest.raises(
        DamagedError, match=r"the best epoch of run .+ is 0 by its result\.json, which .+ does not know"
    ):
        load_trained(str(run))


def test_a_run_that_has_more_epochs_than_its_result_may_have_another_best(run):
    result = run / "result.json"
    damage.reseal(result, epochs=EPOCHS - 1, best_epoch=1)
    assert load_trained(str(run)).best_epoch == 0
