"""What commands print for machines, and what they leave out when they are to be quiet."""

import json

import numpy as np
import pytest

from diffmm_dist.launch.following import Following
from diffmm_dist.monitoring.jsonl import JsonlRecorder
from diffmm_dist.monitoring.log import say_json
from diffmm_dist.monitoring.recorder import Recorder
from diffmm_dist.runs.run_folder import RunFolder
from tests.support.builders import metrics_of, small_config, synthetic_dataset, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    data = synthetic_dataset(folder / "d")
    return write_config(folder / "c.yaml", data={"path": data}, run={"path": str(folder / "run")}, train={"epochs": 2})


@pytest.fixture(scope="module")
def run(config):
    return config.replace("c.yaml", "run")


@pytest.fixture
def lines(run_cli):
    """The lines that a command prints, as JSON."""

    def printed(*words):
        status, out, err = run_cli(*words)
        assert status == 0, err
        return [json.loads(line) for line in out.splitlines()]

    return printed


def test_train_prints_each_epoch_and_the_result(config, run, run_cli):
    status, out, err = run_cli("train", config, "--json")
    *epochs, last = map(json.loads, out.splitlines())
    assert status == 0
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert [
        {tag: epoch[tag] for tag in kept} for epoch, kept in zip(epochs, metrics_of(run), strict=True)
    ] == metrics_of(run)
    assert last == {"result": RunFolder(run).result()}
    assert "epoch 1 of 0..1: valid recall@20 0." in err
    assert run_cli("train", config, "--json")[1] == json.dumps(last) + "\n"
    more = run_cli("train", config, "--json", "train.epochs=3")[1].splitlines()
    assert [json.loads(line).get("epoch") for line in more] == [2, None]


def test_a_mistake_is_no_json(config, run_cli):
    status, out, err = run_cli("train", config, "--json", "train.epochs=0")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")


def test_a_quiet_run_shows_the_result_alone(config, run_cli, tmp_path):
    status, out, err = run_cli("train", config, "--quiet", f"run.path={tmp_path / 'run'}")
    assert (status, err) == (0, "")
    assert "test @20" in out
    assert run_cli("train", config, "--quiet", "--json", f"run.path={tmp_path / 'run'}")[2] == ""


def test_a_quiet_run_says_what_is_wrong(config, run_cli):
    assert run_cli("train", config, "--quiet", "data.modalities=[visul]")[2].startswith("error: ")


def test_an_epochs_line_says_what_was_found_how_long_it_took_and_the_losses(config, run_cli, tmp_path):
    err = run_cli("train", config, f"run.path={tmp_path / 'run'}")[2]
    (line,) = [line for line in err.splitlines() if line.startswith("epoch 1 of 0..1: ")]
    for part in (
        "valid recall@20 0.",
        "(best 0.",
        "denoise 0.",
        "(elbo_visual ",
        "rebuild 0.",
        " s (bpr ",
        "evaluate 0.",
    ):
        assert part in line
    assert "observed_share" not in line


def test_evaluate_and_compare(config, run, lines, run_cli):
    run_cli("train", config)
    (found,) = lines("evaluate", run, "--json", "--k", "5,20")
    assert found["metrics"]["recall@20"] == pytest.approx(RunFolder(run).result()["test"]["recall@20"])
    assert (found["split"], found["run"], found["protocol"]) == ("test", run, "validation")
    rows = lines("compare", run, "--json", "--k", "20")
    assert [(row["run"], row["recall@20"]) for row in rows] == [(run, RunFolder(run).result()["test"]["recall@20"])]
    assert lines("compare", run, "--json", "--k", "7")[0]["recall@7"] is None


def test_inspect(config, lines):
    (found,) = lines("inspect", config.replace("c.yaml", "d"), "--json")
    assert found["counts"] == {"users": 60, "items": 40}
    assert found["modalities"]["visual"] == {"width": 6, "dtype": "float32"}
    assert sum(found["interactions"].values()) > 0


def test_recommend_and_similar_print_what_a_file_would_hold(config, run, lines, run_cli, tmp_path):
    run_cli("train", config)
    bundle = tmp_path / "bundle"
    run_cli("export", run, "--out", bundle)
    words = ("recommend", bundle, "--users", "user_0,user_1", "--k", "3")
    run_cli(*words, "--out", tmp_path / "r.jsonl")
    assert lines(*words, "--json") == [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(lines("recommend", bundle, "--all", "--k", "2", "--json")) == 120
    assert [row["rank"] for row in lines("similar", bundle, "--items", "item_1", "--k", "2", "--json")] == [1, 2]
    status, out, err = run_cli(*words, "--json", "--out", tmp_path / "x.csv")
    assert (status, out, err.count("give one of them")) == (1, "", 1)


def test_what_is_no_number_is_null(capsys):
    say_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}, "d": "\x1b[2J\n"})
    assert capsys.readouterr().out == '{"a": [null, 1.5], "b": {"c": null}, "d": "\\u001b[2J\\n"}\n'


class Told(Recorder):
    def __init__(self):
        self.epochs = []

    def scalars(self, values, *, epoch):
        self.epochs.append((epoch, values["x/y"]))

    def close(self):
        pass


def test_what_workers_record_is_followed_from_elsewhere_each_epoch_once(tmp_path):
    config = small_config("d", tmp_path / "run")
    folder = RunFolder(str(tmp_path / "run"))
    folder.claim(config, fingerprint="0" * 64)

    def record(writer, epochs, start=0):
        recorder = JsonlRecorder(folder.metrics, run=folder.run, start_epoch=start, writer=writer)
        for epoch in epochs:
            recorder.scalars({"x/y": float(writer)}, epoch=epoch)
        recorder.close()

    record(0, range(3))
    told = Told()
    following = Following(folder, [told])
    following.look(now=True)
    assert told.epochs == []
    record(1, [1], start=1)
    following.look(now=True)
    following.look(now=True)
    record(2, [1, 2], start=1)  # the workers have begun again
    following.look(now=True)
    assert told.epochs == [(1, 1.0), (2, 2.0)]
    folder.release()
    assert np.all([tag in ("epoch", "writer", "x/y") for record in folder.records() for tag in record])
