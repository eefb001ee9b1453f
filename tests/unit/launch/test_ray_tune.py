"""What the sampler and the scheduler are told when a search goes on, without Ray itself."""

import math
from types import SimpleNamespace

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.tuning.journal import Journal, Search
from diffmm_dist.tuning.space import Choice, Range
from tests.support.builders import small_config

pytest.importorskip("ray.tune", reason="Ray Tune is not installed")
pytest.importorskip("optuna", reason="Optuna is not installed")

from diffmm_dist.launch import ray_tune

SPACE = {"train.learning_rate": Range(1e-4, 1e-2, log=True), "model.num_layers": Choice(([1], [2], [3]))}


def search():
    return Search(
        config=small_config("d", "r").model_dump(mode="json"), dataset="f", epochs=9, first_stop=1, seed=0,
        space={key: dimension.as_tree() for key, dimension in SPACE.items()},
    )  # fmt: skip


@pytest.fixture
def journal(tmp_path):
    return Journal(str(tmp_path), search(), command="tune")


def sampler(journal, first=None):
    return ray_tune._Sampler(journal, SPACE, first=first, parallel=1)


def told(journal, trial, *figures):
    for epoch, figure in enumerate(figures):
        journal.report(trial, epochs=epoch + 1, best_epoch=epoch, valid={"recall@20": figure}, seconds=0.0)


def test_the_first_trial_has_the_values_it_is_given_and_the_others_lie_in_the_space(journal):
    first = {"train.learning_rate": 3e-3, "model.num_layers": [2]}
    search = sampler(journal, first)
    found = [search.suggest(str(number)) for number in range(6)]
    assert found[0] == {"trial": "t000", "values": first}
    assert [one["trial"] for one in found] == [f"t00{number}" for number in range(6)]
    assert all(SPACE[key].holds(value) for one in found for key, value in one["values"].items())
    assert len({one["values"]["train.learning_rate"] for one in found}) == 6


def test_going_on_it_begins_with_the_trials_that_were_begun_and_repeats_none(journal, tmp_path):
    before = [sampler(journal).suggest("a")["values"]]
    search_before = sampler(journal)
    search_before.suggest("a")  # t000 again, since it has not ended
    before.append(search_before.suggest("b")["values"])
    told(journal, journal.trials[0], 0.1)
    journal.end(journal.trials[0], "stopped")
    again = sampler(Journal(str(tmp_path), search(), command="tune"))
    assert again.suggest("c") == {"trial": "t001", "values": before[1]}
    new = again.suggest("d")
    assert new["trial"] == "t002"
    assert new["values"] not in before


def test_optuna_knows_the_figures_of_earlier_trials_and_which_have_failed(journal, tmp_path):
    for state in ("complete", "failed"):
        trial = journal.begin({"train.learning_rate": 1e-3, "model.num_layers": [3]})
        told(journal, trial, 0.3)
        journal.end(trial, state)
    known = sampler(Journal(str(tmp_path), search(), command="tune"))._ot_study.trials
    assert [(one.state.name, one.value) for one in known] == [("COMPLETE", 0.3), ("FAIL", None)]
    assert known[0].params == {"train.learning_rate": 1e-3, "model.num_layers": 2}  # the place of the choice


def test_a_trial_that_fails_has_no_figure_for_optuna(journal):
    search = sampler(journal)
    search.suggest("a")
    search.on_trial_complete("a", ray_tune._failed("no memory"))
    assert search._ot_study.trials[0].state.name == "FAIL"


def test_nothing_of_the_sampler_is_pickled(journal, tmp_path):
    """The journal asks whether it may write by something that cannot be."""
    journal._check = lambda: None
    sampler(journal).save(str(tmp_path / "state.pkl"))
    assert (tmp_path / "state.pkl").read_bytes() == b""


def halving_of(journal, name):
    scheduler = ray_tune._Halving(journal)
    trial = SimpleNamespace(trial_id="new", config={"trial": name})
    scheduler.on_trial_add(None, trial)
    return lambda epochs, best: scheduler.on_trial_result(None, trial, {"epochs": epochs, "best": best})


def test_the_scheduler_compares_with_trials_of_earlier_commands(journal):
    for figure in (0.2, 0.3, 0.4):
        trial = journal.begin({"train.learning_rate": 1e-3, "model.num_layers": [1]})
        told(journal, trial, figure)
        journal.end(trial, "stopped")
    assert halving_of(journal, "t003")(1, 0.25) == "STOP"
    assert halving_of(journal, "t003")(1, 0.5) == "CONTINUE"


def test_a_trial_that_goes_on_is_not_judged_again_by_what_it_was_judged_by(journal):
    good = journal.begin({"train.learning_rate": 1e-3, "model.num_layers": [1]})
    told(journal, good, *[0.1 * epoch for epoch in range(1, 10)])
    journal.end(good, "complete")
    begun = journal.begin({"train.learning_rate": 2e-3, "model.num_layers": [1]})
    told(journal, begun, 0.05, 0.06)
    report = halving_of(journal, "t001")
    assert report(2, 0.06) == "CONTINUE"  # it lags at epoch 1, which it has passed
    assert report(3, 0.06) == "STOP"
    assert report(9, 1.0) == "STOP"  # all its epochs


@pytest.fixture
def quiet_trial(monkeypatch):
    """Trials in this process, which leave its log and environment alone."""
    monkeypatch.setattr(ray_tune, "set_up_logging", lambda: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")


def test_a_trial_elsewhere_that_cannot_see_the_folder_says_so(tmp_path, quiet_trial):
    config = small_config("d", "r").model_dump(mode="json")
    job = {"trial": "t000", "values": {}}
    found = ray_tune._trial(job, config=config, folder=str(tmp_path), on_one_machine=1)
    assert "cannot be seen from the trial's machine" in found["failed"]
    assert math.isnan(found["best"])


def test_what_the_user_can_put_right_is_a_trials_end(journal, quiet_trial, monkeypatch):
    monkeypatch.setattr("diffmm_dist.training.worker.run_worker", refuse)
    config = small_config("d", "r").model_dump(mode="json")
    for values, reason in (({}, "no such dataset"), ({"model.diffusion.noise_min": 0.5}, "noise_min 0.5 is above")):
        job = {"trial": "t000", "values": values}
        found = ray_tune._trial(job, config=config, folder=journal.folder, on_one_machine=1)
        assert reason in found["failed"]


def refuse(config, **_):
    raise UserError("no such dataset")


@pytest.mark.parametrize(("noted", "reason"), [
    ("Failure # 1\nTraceback\n  line 3\nAssertionError: a slip\n", "AssertionError: a slip"),
    ("Failure # 1\nThe actor died unexpectedly before finishing this task.\n\tpid: 3\n", "its process has died"),
    (None, "for no known reason"),
])  # fmt: skip
def test_why_a_trial_has_failed_is_one_line(tmp_path, noted, reason):
    if noted is not None:
        (tmp_path / "error.txt").write_text(noted)
    assert ray_tune._reason(SimpleNamespace(error_file=str(tmp_path / "error.txt"))).startswith(reason)
