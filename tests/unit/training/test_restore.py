"""A run whose files were damaged says so, and goes on with the numbers of one that nothing happened to."""

import json
import shutil

import pytest

from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.training.trained import load_trained
from tests.support import damage
from tests.support.builders import (
    checkpoint_tensors,
    metrics_of,
    small_config,
    synthetic_dataset,
    train_alone,
    warnings_in,
)

EPOCHS = 4


def config_of(folder, epochs, **sections):
    settings = {
        "model": {"name": "lightgcn"}, "train": {"epochs": epochs},
        "monitoring": {"tensorboard": False}, "checkpoint": {"keep": 2},
    }  # fmt: skip
    return small_config(folder.parent / "data", folder, **(settings | sections))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of three epochs, to be damaged, and one of four that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs")
    synthetic_dataset(folder / "data")
    for name, epochs in (("three", EPOCHS - 1), ("whole", EPOCHS)):
        train_alone(config_of(folder / name, epochs))
    return folder


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs / "data", tmp_path / "data")
    return shutil.copytree(runs / "three", tmp_path / "run")


def newest(run):
    return sorted((run / "checkpoints").iterdir())[-1]


DAMAGES = {"a bit": lambda path: damage.flip(path, 0.5), **damage.WHOLE}
DAMAGES.pop("longer")


@pytest.mark.parametrize("file", ["__0_0.distcp", "index.json", "state.json"])
@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_newest_checkpoint(runs, run, caplog, file, change):
    """It is named, and the run ends where one does that nothing happened to."""
    place = newest(run) / file
    DAMAGES[change](place)
    result = train_alone(config_of(run, EPOCHS))
    said = warnings_in(caplog)
    assert str(place) in said[0]
    assert "checkpoint epoch-00003 was damaged; the run went on from epoch-00002" in said[1:]
    assert set(result["notes"]) <= set(said)
    assert metrics_of(run) == metrics_of(runs / "whole")
    tensors, expected = (checkpoint_tensors(newest(path)) for path in (run, runs / "whole"))
    assert all((tensors[name] == value).all() for name, value in expected.items())


def test_every_checkpoint_is_damaged(run):
    before = metrics_of(run)
    for path in (run / "checkpoints").iterdir():
        damage.flip(path / "__0_0.distcp", 0.3)
    with pytest.raises(UserError, match="no checkpoint in .* can be read; restore one of them, or remove that folder"):
        train_alone(config_of(run, EPOCHS))
    assert metrics_of(run) == before


def set_best(run, epoch):
    """Make an earlier epoch the best one."""
    for path in (run / "checkpoints").glob("*/state.json"):
        metrics = dict.fromkeys(json.loads(path.read_text())["best"]["metrics"], 0.99)
        best = {"epoch": epoch, "metrics": metrics, "checkpoint": f"epoch-{epoch + 1:05d}"}
        damage.reseal(path, best=best)
    damage.reseal(run / "result.json", best_epoch=epoch)


def flip_model(path):
    """Flip a bit of the model: what comes after it is the optimiser's, which only `train` reads."""
    tensors = json.loads((path.parent / "index.json").read_text())["tensors"]
    chunk = next(entry["chunks"][0] for name, entry in tensors.items() if name.startswith("model/"))
    damage.flip(path, chunk["start"] + chunk["length"] // 2)


@pytest.mark.parametrize("change", ["a bit", "emptied", "deleted", "a folder"])
def test_the_best_epochs_checkpoint_is_damaged(run, caplog, change):
    set_best(run, 1)
    place = run / "checkpoints" / "epoch-00002" / "__0_0.distcp"
    (flip_model if change == "a bit" else DAMAGES[change])(place)
    with pytest.raises(DamagedError, match=r"epoch-00002/__0_0\.distcp"):
        load_trained(str(run))
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="has trained 3 epochs already"):
        train_alone(config_of(run, EPOCHS - 1))
    caplog.clear()
    result = train_alone(config_of(run, EPOCHS))
    assert str(place) in warnings_in(caplog)[0]
    assert result["notes"] == [
        "the checkpoint epoch-00002 of the best epoch so far, 1, was lost; the best epoch is one from 3 on"
    ]
    assert result["best_epoch"] == 3
    load_trained(str(run))


def test_the_best_epochs_checkpoint_is_gone(run, caplog):
    set_best(run, 0)
    shutil.rmtree(run / "checkpoints" / "epoch-00001", ignore_errors=True)
    result = train_alone(config_of(run, EPOCHS))
    assert "epoch-00001" in warnings_in(caplog)[0]
    assert result["best_epoch"] == 3


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda lines: [], "0, 1, 2"),
        (lambda lines: lines[:2], "2"),
        (lambda lines: [lines[0], lines[2]], "1"),
        (lambda lines: [lines[0], lines[1][:40] + "\n", lines[2]], "1"),
        (lambda lines: [lines[0].replace("0.", "1.", 1), *lines[1:]], "0"),
        (lambda lines: [*lines[:2], lines[2][:-30]], "2"),
    ],
    ids=["emptied", "shortened", "a line is missing", "a line is cut", "a number has changed", "the last line is cut"],
)
def test_damaged_records_of_epochs_that_are_done(runs, run, caplog, change, lost):
    place = run / "metrics.jsonl"
    place.write_text("".join(change(place.read_text().splitlines(keepends=True))))
    result = train_alone(config_of(run, EPOCHS))
    said = f"metrics.jsonl has lost the records of epochs {lost}; it was damaged, shortened or removed"
    assert warnings_in(caplog) == [said] == result["notes"]
    kept = [record for record in metrics_of(runs / "whole") if str(record["epoch"]) not in lost.split(", ")]
    assert metrics_of(run) == kept


def test_a_line_that_a_killed_process_left_unfinished_is_nothing_to_speak_of(runs, run, caplog):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "valid/rec')
    assert train_alone(config_of(run, EPOCHS))["notes"] == []
    assert warnings_in(caplog) == []
    assert metrics_of(run) == metrics_of(runs / "whole")


def test_records_without_a_checkpoint(run, caplog):
    shutil.rmtree(run / "checkpoints")
    (run / "result.json").unlink()
    train_alone(config_of(run, EPOCHS))
    assert warnings_in(caplog) == [f"{run} has records of earlier epochs but no checkpoint; it begins anew"]


def test_notes_outlive_the_process_that_made_them(run):
    damage.flip(newest(run) / "index.json", 0.5)
    (run / "result.json").unlink()
    train_alone(config_of(run, EPOCHS))
    notes = train_alone(config_of(run, EPOCHS + 1))["notes"]
    assert notes == ["checkpoint epoch-00003 was damaged; the run went on from epoch-00002"]
    assert RunFolder.existing(str(run)).result()["notes"] == notes


@pytest.mark.parametrize("change", DAMAGES)
@pytest.mark.parametrize("file", ["config.yaml", "run.json", "result.json"])
def test_a_damaged_file_of_the_run_folder(run, file, change):
    DAMAGES[change](run / file)
    if (file, change) == ("result.json", "deleted"):
        assert train_alone(config_of(run, EPOCHS - 1))["epochs"] == 3  # it is made again
        return
    with pytest.raises(UserError) as error:
        train_alone(config_of(run, EPOCHS - 1))
    assert file in str(error.value)
    assert "\n" not in str(error.value)
