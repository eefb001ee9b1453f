"""The command `tune`, without Ray: what it refuses before any trial, and what it says at its end."""

from pathlib import Path

import pytest
import yaml

from diffmm_dist import storage
from diffmm_dist.launch import tune
from diffmm_dist.runs.lock import FileLock
from diffmm_dist.tuning.journal import read_record
from tests.support.builders import synthetic_dataset, write_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture
def command(dataset, tmp_path):
    """A search of two trials in a folder of its own."""
    config = write_config(tmp_path / "c.yaml", data={"path": dataset}, run={"path": "unused"})
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"train.learning_rate": {"log": [1e-3, 1e-1]}}))
    return ["tune", "--config", config, "--space", tmp_path / "space.yaml", "--out", tmp_path / "out", "--trials", 2]


@pytest.fixture
def trials(monkeypatch):
    """In place of Ray: trials with these figures, None for one that fails."""
    figures = [0.1, 0.3]
    seen = []

    def run(journal, space, config, asked):
        seen.append(asked)
        for figure in figures[len(journal.trials) : asked.trials]:
            trial = journal.begin({"train.learning_rate": 0.002})
            if figure is None:
                journal.end(trial, "failed", reason="no memory")
                continue
            journal.report(trial, epochs=3, best_epoch=1, valid={"recall@20": figure}, seconds=1.0)
            journal.end(trial, "complete")

    monkeypatch.setattr(tune, "_run", run)
    return figures, seen


def test_it_ends_with_a_table_a_picture_and_the_best_configuration(run_cli, command, trials, tmp_path):
    status, out, err = run_cli(*command)
    assert status == 0, err
    assert out.index("t001") < out.index("t000")
    assert out.splitlines()[-1] == f"train the best: python launch.py train --config {tmp_path / 'out' / 'best.yaml'}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["best.yaml", "lock", "tune.json", "tune.svg"]


def test_more_trials_go_on_and_the_same_number_runs_none(run_cli, command, trials):
    figures, seen = trials
    run_cli(*command)
    status, _, err = run_cli(*command)
    assert (status, len(seen)) == (0, 1), err
    figures.append(0.5)
    status, out, err = run_cli(*command[:-1], 3)
    assert (status, len(seen)) == (0, 2), err
    assert out.index("t002") < out.index("t001")


def test_where_all_trials_fail_it_says_why(run_cli, command, trials):
    trials[0][:] = [None, None]
    status, _, err = run_cli(*command)
    assert status == 1
    assert "have failed, the first because: no memory" in err


@pytest.mark.parametrize(("words", "sentences"), [
    (["eval.protocol=published", "cluster.num_workers=2"], ["eval.protocol=validation", "cluster.num_workers=0"]),
    (["--first-stop", 9], ["--first-stop 9 is more than the 3 epochs of a trial"]),
    (["data.path=/nowhere"], ["/nowhere"]),
    (["--out", "mem://out"], ["mem://out"]),
], ids=["sections", "first stop", "data", "memory"])  # fmt: skip
def test_it_refuses_what_cannot_be_searched_and_leaves_nothing(run_cli, command, trials, tmp_path, words, sentences):
    status, _, err = run_cli(*command, *words)
    assert status == 1
    assert all(sentence in err for sentence in sentences), err
    assert not (tmp_path / "out").exists()
    assert trials[1] == []


def test_two_commands_in_one_folder_are_refused(run_cli, command, trials, tmp_path):
    lock = FileLock(Path(tmp_path / "out" / "lock"))
    lock.acquire("here", patience_s=0)
    try:
        status, _, err = run_cli(*command)
    finally:
        lock.release()
    assert status == 1
    assert "another process is training in" in err
    assert "choose another --out" in err


def test_without_optuna_it_names_the_extra(run_cli, command, trials, monkeypatch):
    monkeypatch.setattr(tune, "find_spec", lambda name: None)
    status, _, err = run_cli(*command)
    assert status == 1
    assert "pip install 'diffmm-dist[tune]'" in err


def test_values_outside_the_space_are_no_trial_of_it(run_cli, command, trials, tmp_path):
    run_cli(*command)
    place = str(tmp_path / "out" / "tune.json")
    record = read_record(place)
    record["trials"][0]["values"]["train.learning_rate"] = 7.0
    storage.write_record(place, record)
    status, _, err = run_cli(*command)
    assert status == 1
    assert "train.learning_rate of its trial t000 lies outside the space" in err
