"""What a model of several stages may rely on: patience, the best epoch of the stage before, resumption anywhere."""

import json
import logging
import shutil

import pytest
import torch

from diffmm_dist import cli
from diffmm_dist.errors import StoppedError, UserError
from diffmm_dist.models.recipe import Recipe, Stage
from diffmm_dist.models.registry import FOLDERS
from diffmm_dist.training import worker
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.worker import run_worker
from tests.contracts.toy.model import Toy
from tests.contracts.toy.training import config_of, register, stopped, train_in_pieces
from tests.support import damage
from tests.support.builders import (
    checkpoint_tensors,
    metrics_of,
    small_config,
    synthetic_dataset,
    train_alone,
)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(FOLDERS, "toy", "tests.contracts.toy")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", users=200, items=60, interactions=2400)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A run that nothing interrupts."""
    register()
    run = tmp_path_factory.mktemp("runs") / "whole"
    train_alone(config_of(dataset, run))
    del FOLDERS["toy"]
    return run


def result_of(run):
    return json.loads((run / "result.json").read_text())


def interrupted(model):
    raise KeyboardInterrupt


def same(run, expected):
    results = [result_of(path) for path in (run, expected)]
    for key in ("valid", "test", "best_epoch", "epochs"):
        assert results[0][key] == results[1][key]
    stages = [[{**stage, "seconds_per_epoch": 0} for stage in result["stages"]] for result in results]
    assert stages[0] == stages[1]
    assert metrics_of(run) == metrics_of(expected)
    newest = [sorted((path / "checkpoints").iterdir())[-1] for path in (run, expected)]
    assert newest[0].name == newest[1].name
    found, tensors = (checkpoint_tensors(path) for path in newest)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_a_stage_ends_by_patience_and_its_best_epoch_begins_the_next(whole, dataset):
    result = result_of(whole)
    warm, refine, student = result["stages"]
    assert [stage["name"] for stage in result["stages"]] == ["warm", "refine", "student"]
    assert warm["epochs"] == warm["best_epoch"] + 2 < 6  # a patience of one evaluation
    assert (refine["epochs"], student["epochs"]) == (2, 3)
    assert student["best_epoch"] == result["best_epoch"] >= warm["epochs"] + 2
    assert {key: student[key] for key in ("valid", "test")} == {key: result[key] for key in ("valid", "test")}
    assert all(stage["test"]["recall@20"] > 0 for stage in result["stages"])
    # The tables of the first stage's best epoch are what the second one went on with, and the third one learned from.
    best = checkpoint_tensors(whole / "checkpoints" / f"epoch-{warm['best_epoch'] + 1:05d}")
    refined = checkpoint_tensors(whole / "checkpoints" / f"epoch-{refine['best_epoch'] + 1:05d}-stage-1")
    newest = checkpoint_tensors(sorted((whole / "checkpoints").iterdir())[-1])
    assert torch.equal(best["model/user_embedding"], refined["model/user_embedding"])
    assert not torch.equal(best["model/item_embedding"], refined["model/item_embedding"])
    expected = refined["model/item_embedding"] * refined["model/scale"]
    assert torch.equal(newest["model/target_items"], expected)
    assert {name.split("/")[1] for name in newest if name.startswith("optimizer/")} == {"student"}


def test_records_know_the_stage_and_leave_out_phases_that_did_not_run(whole):
    records = json.loads("[" + ",".join((whole / "metrics.jsonl").read_text().splitlines()) + "]")
    stages = [stage["name"] for stage in result_of(whole)["stages"]]
    assert sorted({record["stage"] for record in records}) == [0, 1, 2]
    for record in records:
        evaluated = {tag.split("/")[0] for tag in record if tag.endswith("/valid/recall@20")}
        assert evaluated == {stages[int(record["stage"])]}
        sometimes = [tag for tag in record if "sometimes" in tag and not tag.startswith("mem/")]
        runs = record["stage"] == 1 and record["epoch"] % 2 == 1
        assert len(sometimes) == (4 if runs else 0)  # a loss, what finish returns, seconds and throughput
        assert record["time/epoch_s"] > 0
    assert any("sometimes/scale" in record for record in records)
    assert any("sometimes/scale" not in record for record in records if record["stage"] == 1)
    assert set(result_of(whole)["seconds_per_phase"]) >= {"warm", "sometimes", "refine", "student", "evaluate"}


def test_stopped_after_any_step_of_any_stage_it_goes_on_with_the_same_bits(whole, dataset, tmp_path, monkeypatch):
    calls = []
    for name in ("begin_refine", "begin_student"):
        begin = getattr(Toy, name)
        monkeypatch.setattr(Toy, name, lambda self, begin=begin: (calls.append(self.stage), begin(self)))
    places = train_in_pieces(config_of(dataset, tmp_path / "run"))
    same(tmp_path / "run", whole)
    assert {place.split(",")[0] for place in places} >= {"stage 'warm'", "stage 'refine'", "stage 'student'"}
    assert any("phase 'sometimes', step 1" in place for place in places)
    assert len(places) > 2 * result_of(whole)["epochs"]
    assert calls == ["refine", "student"]  # a run that is resumed inside a stage does not begin it again


def test_killed_at_a_stages_end_it_begins_the_next_one_all_the_same(whole, dataset, tmp_path, monkeypatch):
    """The newest checkpoint is the one from before the stage began: what begins it is done again."""
    run = tmp_path / "run"

    for name in ("begin_refine", "begin_student"):
        with monkeypatch.context() as patch:
            patch.setattr(Toy, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                train_alone(config_of(dataset, run))
    train_alone(config_of(dataset, run))
    same(run, whole)


def evaluated(run):
    trained = load_trained(str(run))
    assert trained.model.stage == "student"
    return trained.evaluation([5, 20]).measure(trained.model, "test")


def test_evaluate_takes_the_last_stage(whole, dataset, tmp_path):
    assert evaluated(whole) == result_of(whole)["test"]
    for polls in range(4, 40, 4):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert stopped(config_of(dataset, tmp_path / "run"), polls) is not None
        try:
            assert evaluated(tmp_path / "run")
            break
        except UserError as error:
            said = str(error)
            assert "has not evaluated an epoch" in said or "has not come to its last stage, 'student'" in said
    else:
        raise AssertionError("never evaluated")
    assert polls > 12


def test_the_best_of_a_stage_that_has_ended_is_kept_and_its_loss_is_said(whole, dataset, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    place = run / "checkpoints" / f"epoch-{result_of(run)['stages'][0]['best_epoch'] + 1:05d}" / "__0_0.distcp"
    place.unlink()
    result = train_alone(config_of(dataset, run, train={"epochs": 4}))
    assert result["notes"] == [f"the checkpoint {place.parent.name} of the best epoch of stage 'warm' was lost"]
    assert result["stages"][0]["test"] == {}
    assert result["stages"][0]["valid"] == result_of(whole)["stages"][0]["valid"]
    assert result["stages"][1]["test"] == result_of(whole)["stages"][1]["test"]
    assert result["epochs"] == result_of(whole)["epochs"] + 1


def test_a_damaged_checkpoint_of_a_stage_leads_back_to_the_one_before(whole, dataset, tmp_path):
    """With all checkpoints of the last stage damaged, it begins again."""
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "result.json").unlink()
    *_, before = (path.name for path in sorted((run / "checkpoints").iterdir()) if "-stage-1" in path.name)
    for path in (run / "checkpoints").glob("*-stage-2*"):
        damage.flip(path / "__0_0.distcp", 0.5)
    result = train_alone(config_of(dataset, run))
    assert f"the run went on from {before}" in result["notes"][0]
    for key in ("valid", "test", "best_epoch"):
        assert result[key] == result_of(whole)[key]


def test_the_best_epoch_of_an_ending_stage_is_lost(dataset, tmp_path, monkeypatch):
    """Without it the next stage cannot begin."""
    run = tmp_path / "run"
    config = config_of(dataset, run, model={"warm_epochs": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "begin_refine", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_alone(config)
    state = run / "checkpoints" / "epoch-00002" / "state.json"
    best = json.loads(state.read_text())["best"]
    damage.reseal(state, best={**best, "epoch": 0, "checkpoint": "epoch-00001"})
    shutil.rmtree(run / "checkpoints" / "epoch-00001", ignore_errors=True)
    with pytest.raises(UserError, match=r"stage 'warm' of .* has had its 2 epochs, and the checkpoint of its best"):
        train_alone(config)


CHANGES = {
    "more epochs for a stage that had all of its": {"train": {"epochs": 4}},
    "patience": {"train": {"patience": 2}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stage_that_has_ended_might_have_ended_elsewhere(dataset, tmp_path, change):
    """Here the second stage takes its epochs from the configuration, so its end would depend on what has changed."""
    run = tmp_path / "run"
    model = {"refine_epochs": None}
    result = train_alone(config_of(dataset, run, model=model, train={"epochs": 2}))
    with pytest.raises(UserError, match=r"stage 'refine' of .* has ended after 2 epochs, of at most 2 and with a pat"):
        train_alone(config_of(dataset, run, model=model, train={"epochs": 2} | CHANGES[change]["train"]))
    assert {**result_of(run), "sha256": 0} == {**result, "sha256": 0}


def test_the_last_stage_goes_on_with_more_epochs(whole, dataset, tmp_path):
    train_alone(config_of(dataset, tmp_path / "run", train={"epochs": 2}))
    train_alone(config_of(dataset, tmp_path / "run"))
    same(tmp_path / "run", whole)


def test_fewer_epochs_than_the_last_stage_has_had_are_refused(whole, dataset, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "result.json").unlink()
    with pytest.raises(UserError, match=r"has trained 3 epochs of stage 'student' already, so .* train\.epochs=2"):
        train_alone(config_of(dataset, run, train={"epochs": 2}))


def test_patience_of_the_configuration_ends_a_run_and_may_be_raised(dataset, tmp_path):
    """Of a model of one stage."""
    sections = {"model": {"name": "lightgcn"}, "graph": {"kernel": "csr"}, "monitoring": {"tensorboard": False}}
    train = {"epochs": 12, "batch_size": 640, "learning_rate": 0.5}
    short, long = (
        train_alone(small_config(dataset, tmp_path / f"{patience}", train={**train, "patience": patience}, **sections))
        for patience in (1, 3)
    )
    assert short["epochs"] == short["best_epoch"] + 2 < 12
    assert short["epochs"] < long["epochs"]
    again = train_alone(small_config(dataset, tmp_path / "1", train={**train, "patience": 3}, **sections))
    assert (again["test"], again["epochs"], again["best_epoch"]) == (long["test"], long["epochs"], long["best_epoch"])
    assert metrics_of(tmp_path / "1") == metrics_of(tmp_path / "3")
    records = metrics_of(tmp_path / "1")
    assert not any("stage" in record for record in records)


def test_patience_counts_evaluations(dataset, tmp_path):
    sections = {"model": {"name": "lightgcn"}, "graph": {"kernel": "csr"}, "monitoring": {"tensorboard": False}}
    train = {"epochs": 20, "batch_size": 640, "learning_rate": 0.5, "patience": 2}
    result = train_alone(small_config(dataset, tmp_path / "run", train=train, eval={"every_epochs": 3}, **sections))
    assert (result["epochs"] - result["best_epoch"] - 1) == 2 * 3 or result["epochs"] == 20
    assert result["epochs"] % 3 == 0 or result["epochs"] == 20


def test_another_version_of_the_model_has_other_stages(whole, dataset, tmp_path, monkeypatch):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "result.json").unlink()
    build = worker.build_recipe

    def with_other_stages(*arguments, **options):
        recipe = build(*arguments, **options)
        return Recipe(recipe.model, [Stage("cold", recipe.stages[0].phases, 6, 1), *recipe.stages[1:]])

    monkeypatch.setattr(worker, "build_recipe", with_other_stages)
    with pytest.raises(UserError, match=r"a stage that this version of its model does not have \(it has cold,"):
        train_alone(config_of(dataset, run))


def test_what_is_logged_and_shown_names_the_stage(whole, dataset, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffmm_dist"), "propagate", True)
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(StoppedError, match=r"stage 'warm', epoch 1, phase 'warm', step 1"),
    ):
        run_worker(
            config_of(dataset, tmp_path / "run"),
            stop_requested=iter([False] * 3 + [True] + [False] * 99).__next__,
        )
    assert "stage 'warm', epoch 0 of 0..5: valid recall@20" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train_alone(config_of(dataset, tmp_path / "run"))
    assert "checkpoint epoch-00001-phase-0-step-0000001: stage 'warm', epoch 1, phase 0, step 1" in caplog.text
    warm = result_of(whole)["stages"][0]
    assert f"stage 'refine' begins, with epoch {warm['best_epoch']} of stage 'warm'" in caplog.text
    early = (
        f"no epoch has been better than {warm['best_epoch']} in 1 evaluations, so training ends after {warm['epochs']}"
    )
    assert f"stage 'warm', {early} of 6 epochs" in caplog.text
    cli._show_result(result_of(whole), "run")
    shown = " ".join(capsys.readouterr().out.split())
    start = 0
    for stage in result_of(whole)["stages"]:
        of = f"{stage['best_epoch']} of {start}..{start + stage['epochs'] - 1}, chosen on validation"
        assert f"toy, seed 421: stage '{stage['name']}', epoch {of}" in shown
        start += stage["epochs"]
    assert start == result_of(whole)["epochs"]
    assert shown.count("valid @20") == shown.count("test @5") == 3
