"""What a search remembers, and whom it lets go on with it."""

import json

import pytest

from diffmm_dist import storage
from diffmm_dist.errors import DamagedError, TakenOverError, UserError
from diffmm_dist.tuning.journal import Journal, Search, trial_folder
from tests.support.builders import small_config


def search(**changes):
    config = small_config("d", "r").model_dump(mode="json")
    space = {"train.learning_rate": {"log": [1e-4, 1e-2]}}
    return Search(
        **{"config": config, "space": space, "dataset": "f", "epochs": 9, "first_stop": 1, "seed": 0} | changes
    )


def journal_of(folder, **changes):
    return Journal(str(folder), search(**changes), command="python launch.py tune")


def told(journal, rate, *figures, state="complete", reason=None):
    """A trial that has reported figures."""
    trial = journal.begin({"train.learning_rate": rate})
    for epoch, figure in enumerate(figures):
        journal.report(trial, epochs=epoch + 1, best_epoch=epoch, valid={"recall@20": figure}, seconds=epoch)
    if state != "running":
        journal.end(trial, state, reason=reason)
    return trial


def test_it_goes_on_with_what_an_earlier_process_has_written(tmp_path):
    journal = journal_of(tmp_path)
    told(journal, 1e-3, 0.1, 0.2)
    told(journal, 2e-3, 0.3, state="running")
    again = journal_of(tmp_path)
    assert again.trials == journal.trials
    assert [trial["name"] for trial in again.of("running")] == ["t001"]
    assert again.trials[0]["curve"] == [(1, 0.1), (2, 0.2)]
    assert again.best()["name"] == "t001"
    assert storage.read_json(str(tmp_path / "tune.json"))["best"] == "t001"


def test_an_epoch_that_is_told_again_stands_once_and_one_that_was_lost_is_trained_again(tmp_path):
    journal = journal_of(tmp_path)
    trial = told(journal, 1e-3, 0.1, 0.2, 0.3, state="running")
    journal.report(trial, epochs=2, best_epoch=1, valid={"recall@20": 0.2}, seconds=5)
    assert trial["curve"] == [(1, 0.1), (2, 0.2)]


def test_the_best_come_first_and_those_that_failed_last(tmp_path):
    journal = journal_of(tmp_path)
    told(journal, 1e-3, 0.1)
    told(journal, 2e-3, 0.9, state="failed", reason="no memory")
    told(journal, 3e-3, 0.3, state="stopped")
    told(journal, 4e-3, state="running")
    assert [trial["name"] for trial in journal.ranked()] == ["t002", "t000", "t001", "t003"]
    assert journal.best()["name"] == "t002"


def test_there_is_no_best_before_there_is_a_figure(tmp_path):
    journal = journal_of(tmp_path)
    told(journal, 1e-3, state="failed", reason="no memory")
    assert journal.best() is None


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"epochs": 8}, "--epochs is 8 but the search has 9"),
    ({"first_stop": 2}, "--first-stop is 2 but the search has 1"),
    ({"seed": 2}, "--seed is 2 but the search has 0"),
    ({"dataset": "g"}, "the dataset's contents are not those"),
    ({"space": {"train.l2_weight": {"log": [1e-4, 1e-2]}}}, "space of train.l2_weight is .* space of train.lea"),
    ({"config": small_config("d", "r", train={"batch_size": 7}).model_dump(mode="json")},
     "train.batch_size is 7 but the search has 64"),
    ({"config": small_config("d", "r", train={"patience": 7}).model_dump(mode="json")},
     "train.patience is 7 but the search has null"),
])  # fmt: skip
def test_another_search_in_the_folder_is_refused(tmp_path, changes, sentence):
    journal_of(tmp_path)
    with pytest.raises(UserError, match=f"holds another search: .*{sentence}.*; choose another --out"):
        journal_of(tmp_path, **changes)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other files and no search; choose another --out"):
        journal_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_where_it_runs_may_change(tmp_path):
    journal_of(tmp_path)
    journal_of(tmp_path, config=small_config("e", "q", cluster={"threads_per_worker": 2}).model_dump(mode="json"))


def test_trials_whose_journal_is_gone_are_not_taken_for_this_searchs(tmp_path):
    (tmp_path / "trials").mkdir()
    with pytest.raises(UserError, match="has trials but its tune.json is gone"):
        journal_of(tmp_path)


def changed_record(folder, change):
    """Change what tune.json says, with the checksum that belongs to it."""
    place = str(folder / "tune.json")
    record = {key: value for key, value in json.loads((folder / "tune.json").read_text()).items() if key != "sha256"}
    change(record)
    storage.write_record(place, record)


@pytest.mark.parametrize("change", [
    lambda record: record["trials"][0].update(name="../t"),
    lambda record: record["trials"][0].update(name="t007"),
    lambda record: record["trials"][0].update(values={"run.path": "/etc"}),
    lambda record: record["trials"][0].update(state="done"),
    lambda record: record["trials"][0].update(curve=[["a", 1]]),
    lambda record: record.pop("search"),
], ids=["path", "number", "values", "state", "curve", "search"])  # fmt: skip
def test_what_no_search_has_written_is_refused(tmp_path, change):
    told(journal_of(tmp_path), 1e-3, 0.1)
    changed_record(tmp_path, change)
    with pytest.raises(DamagedError, match="choose another --out"):
        journal_of(tmp_path)


def test_one_of_a_later_version_is_left_alone(tmp_path):
    journal_of(tmp_path)
    changed_record(tmp_path, lambda record: record.update(format=99))
    with pytest.raises(UserError, match="of a later version"):
        journal_of(tmp_path)


def test_checkpoints_of_all_but_the_best_trials_that_have_ended_go(tmp_path):
    journal = journal_of(tmp_path)
    for rate, figure, state in ((1e-3, 0.1, "stopped"), (2e-3, 0.3, "complete"), (3e-3, 0.2, "stopped"),
                                (4e-3, 0.0, "running")):  # fmt: skip
        trial = told(journal, rate, figure, state=state)
        storage.write_bytes(storage.join(trial_folder(str(tmp_path), trial["name"]), "checkpoints", "c"), b"")
    journal.drop_checkpoints(keep=2)
    left = sorted(path.parent.parent.name for path in tmp_path.glob("trials/*/checkpoints/c"))
    assert left == ["t001", "t002", "t003"]


def test_nothing_is_written_where_another_process_has_the_folder(tmp_path):
    journal = journal_of(tmp_path)
    before = (tmp_path / "tune.json").read_bytes()
    lost = Journal(str(tmp_path), search(), command="x", check=allowed_once())
    after = (tmp_path / "tune.json").read_bytes()
    with pytest.raises(TakenOverError):
        lost.begin({"train.learning_rate": 1e-3})
    assert (tmp_path / "tune.json").read_bytes() == after != before
    assert journal.trials == []


def allowed_once():
    """A check that passes once."""
    left = [True]

    def check():
        if not left:
            raise TakenOverError("was taken over")
        left.clear()

    return check
