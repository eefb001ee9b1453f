"""What users take home, by their own words: recommendations, comparisons, and messages in their own ids."""

import json
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffmm_dist import export
from diffmm_dist.data.writer import dataset_writer
from diffmm_dist.runs.config import load_config
from tests.support.builders import launch, small_config, synthetic_dataset, train_alone, write_config
from tests.support.damage import reseal
from tests.support.optional import has_dgl, metis_or_skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset, two finished runs of it that differ, and a bundle."""
    folder = tmp_path_factory.mktemp("made")
    synthetic_dataset(folder / "d")
    config = write_config(folder / "c.yaml", data={"path": str(folder / "d")}, run={"path": str(folder / "a")},
                          train={"epochs": 1}, model={"name": "lightgcn"})  # fmt: skip
    train_alone(load_config(config))
    train_alone(load_config(config, ["model.num_layers=2", "train.learning_rate=0.02", f"run.path={folder / 'b'}"]))
    export(str(folder / "a"), str(folder / "bundle"))
    return folder


def one_sentence(outcome, *parts, status=1):
    found, _, err = outcome
    assert found == status, err
    assert len(err.splitlines()) == 1, err
    for part in parts:
        assert part in err


def test_recommendations_go_to_files_of_several_formats(run_cli, made, tmp_path):
    for name in ("r.csv", "r.parquet", "r.ARROW", "r.jsonl"):
        status, out, err = run_cli("recommend", made / "bundle", "--all", "--k", 3, "--out", tmp_path / name)
        assert status == 0, err
        assert "180 recommendations to 60 users" in out
    assert (tmp_path / "r.csv").read_text().splitlines()[0].replace('"', "") == "user,rank,item,score"
    assert pq.read_table(tmp_path / "r.parquet").num_rows == 180


def test_another_ending_is_refused_before_any_work(run_cli, tmp_path):
    """There is no bundle, so any work would say so first."""
    for name in ("r.xlsx", "r", "r.csv.zip"):
        outcome = run_cli("recommend", tmp_path / "nowhere", "--all", "--out", tmp_path / name)
        one_sentence(outcome, "must end in one of .csv, .parquet")
    assert list(tmp_path.iterdir()) == []


def test_recommendations_stay_apart_from_what_is_read(run_cli, made, tmp_path):
    users = tmp_path / "users.csv"
    users.write_text("user\nuser_1\n")
    one_sentence(
        run_cli("recommend", made / "bundle", "--all", "--out", made / "bundle" / "users.arrow"), "lies inside"
    )
    one_sentence(run_cli("recommend", made / "bundle", "--users-from", users, "--out", users), "is what is read")


def test_users_are_asked_for_in_one_way(run_cli, made, tmp_path):
    (tmp_path / "users").write_text("user_3\nuser_1\n\nuser_3\n")
    status, out, _ = run_cli("recommend", made / "bundle", "--users-from", tmp_path / "users", "--k", 2)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if "user_" in line] == ["user_3"] * 2 + ["user_1"] * 2
    ways = [["--users", "user_1"], ["--users-from", tmp_path / "users"], ["--all", "--out", tmp_path / "r.csv"]]
    one_sentence(run_cli("recommend", made / "bundle"), "give either --users ID,ID or --all, or --users-from FILE")
    for first in ways:
        for second in ways:
            if first is not second:
                one_sentence(run_cli("recommend", made / "bundle", *first, *second), "one of them only")
    one_sentence(run_cli("recommend", made / "bundle", "--all"), "--all needs --out FILE")
    (tmp_path / "users").write_text("user_1\nbob, or eve\n")
    one_sentence(run_cli("recommend", made / "bundle", "--users-from", tmp_path / "users"), "no user 'bob, or eve'")


def test_runs_are_told_apart_by_what_differs(run_cli, made):
    _, out, _ = run_cli("compare", made / "a", made / "b")
    names = ["lightgcn, num_layers=1, learning_rate=0.01", "lightgcn, num_layers=2, learning_rate=0.02"]
    for name, run in zip(names, ("a", "b"), strict=True):
        row = next(line for line in out.splitlines() if line.strip().startswith(name))
        test = json.loads((made / run / "result.json").read_text())["test"]
        found = re.findall(r"(0\.\d{4}) \((0\.\d{4}) to (0\.\d{4})\)", row)
        assert [figures[0] for figures in found] == [f"{test[metric]:.4f}" for metric in ("recall@20", "ndcg@20")]
        assert all(low < mean < high for mean, low, high in found)
    assert f"{names[0]}: {made / 'a'}; model.num_layers=1, train.learning_rate=0.01" in out
    assert f"{names[1]}: {made / 'b'}; model.num_layers=2, train.learning_rate=0.02" in out
    _, out, _ = run_cli("compare", made / "a")
    assert "settings" not in out


def test_runs_of_different_models_are_compared_by_the_settings_that_each_has(run_cli, made, tmp_path):
    for model in ("diffmm", "lightgcn"):
        train_alone(small_config(made / "d", tmp_path / model, model={"name": model}, train={"epochs": 1}))
    for first, second in (("diffmm", "lightgcn"), ("lightgcn", "diffmm")):
        status, out, err = run_cli("compare", tmp_path / first, tmp_path / second)
        assert status == 0, err
        lines = {line.split(": ", 1)[0]: line for line in out.splitlines() if ": " in line}
        assert "model.diffusion.num_timesteps=" in lines["diffmm"]
        assert "model.diffusion" not in lines["lightgcn"]


def test_runs_of_the_same_settings_say_so(run_cli, made, tmp_path):
    shutil.copytree(made / "a", tmp_path / "copy")
    _, out, _ = run_cli("compare", made / "a", tmp_path / "copy")
    assert "all settings are the same" in out
    assert f"lightgcn (copy): {tmp_path / 'copy'}" in out


def test_runs_that_cannot_be_measured_again_are_compared_without_intervals(run_cli, made, tmp_path):
    shutil.copytree(made / "a", tmp_path / "run")
    figure = f"{json.loads((made / 'a' / 'result.json').read_text())['test']['recall@20']:.4f}"
    for gone, words in (("run/checkpoints", "does not know"), ("d", "does not exist")):
        place = (made if gone == "d" else tmp_path) / gone
        place.rename(tmp_path / "aside")
        status, out, err = run_cli("compare", tmp_path / "run")
        (tmp_path / "aside").rename(place)
        assert status == 0, err
        row = next(line for line in out.splitlines() if line.strip().startswith("lightgcn"))
        assert (figure in row, "(" in row) == (True, False)
        note = next(line for line in out.splitlines() if line.startswith(f"{tmp_path / 'run'}: no interval"))
        assert "since it cannot be measured again" in note
        assert words in note


def test_a_figure_that_is_not_the_run_s_own_is_said(run_cli, made, tmp_path):
    shutil.copytree(made / "a", tmp_path / "run")
    test = json.loads((made / "a" / "result.json").read_text())["test"]
    reseal(tmp_path / "run" / "result.json", test={**test, "ndcg@20": test["ndcg@20"] + 0.01})
    _, out, _ = run_cli("compare", tmp_path / "run")
    assert f"{tmp_path / 'run'}: measured now, ndcg@20 is {test['ndcg@20']:.4f}" in out


def test_a_missing_figure_says_why(run_cli, made, tmp_path):
    _, out, _ = run_cli("compare", made / "a", "--k", 10)
    assert f"{made / 'a'}: measured at 5, 20 only (its eval.k); `evaluate {made / 'a'} --k 10` measures it" in out
    for name, change in (("old", lambda test: test.pop("coverage@20")), ("none", dict.clear)):
        shutil.copytree(made / "a", tmp_path / name)
        test = json.loads((tmp_path / name / "result.json").read_text())["test"]
        change(test)
        reseal(tmp_path / name / "result.json", test=test)
    _, out, _ = run_cli("compare", tmp_path / "old", tmp_path / "none")
    assert f"{tmp_path / 'old'}: it was measured by a version that knew fewer metrics" in out
    assert f"{tmp_path / 'none'}: its dataset {made / 'd'} has no test interactions" in out


def test_an_unfinished_run_does_not_hide_the_others(run_cli, made, tmp_path):
    shutil.copytree(made / "a", tmp_path / "stopped")
    (tmp_path / "stopped" / "result.json").unlink()
    status, out, _ = run_cli("compare", tmp_path / "stopped", made / "b")
    assert status == 0
    assert f"{tmp_path / 'stopped'}: it has not finished; run its `train` command again" in out
    rows = [line for line in out.splitlines() if line.strip().startswith("lightgcn, num_layers=2")]
    assert rows[0].count("0.") >= 3
    one_sentence(run_cli("compare", tmp_path / "stopped"), "has not finished; run its `train` command again")


def dataset_of(path, features=None):
    """Users with names; 'eve, the 2nd' has interacted with all items."""
    with dataset_writer(str(path), num_users=3, num_items=2) as writer:
        for split in ("train", "valid", "test"):
            writer.add_interactions(split, np.array([0, 1, 1]), np.array([0, 0, 1]))
        if features is not None:
            writer.add_features("visual", features)
        writer.add_ids("users", pa.array(["bob", "eve, the 2nd", "tab\tand space "]))
        writer.add_ids("items", pa.array(["B00 X", "B00'Y"]))
    return str(path)


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_user_in_a_message_has_the_users_own_id(run_cli, tmp_path, partitioned):
    data = dataset_of(tmp_path / "d")
    if partitioned:
        assert (
            run_cli("partition", data, "--num-parts", 2, "--out", tmp_path / "p", "--method", "random", "--seed", 1)[0]
            == 0
        )
        data = str(tmp_path / "p")
    config = write_config(tmp_path / "c.yaml", data={"path": data}, run={"path": str(tmp_path / "r")},
                          model={"name": "lightgcn"})  # fmt: skip
    _, _, err = run_cli("train", config)
    assert "error: user 'eve, the 2nd' has interacted with all 2 items" in err


def test_an_item_in_a_message_has_the_users_own_id(run_cli, tmp_path):
    data = dataset_of(tmp_path / "d", np.ones((2, 3), np.float32))
    file = tmp_path / "d" / "items" / "modality=visual" / "part-00000.arrow"
    with pa.memory_map(str(file)) as source:
        schema = pa.ipc.open_file(source).schema
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.array([1, 1, 1, 1, np.nan, 1], np.float32)), 3)
    with pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.table([values], schema=schema))
    config = write_config(tmp_path / "c.yaml", data={"path": data}, run={"path": str(tmp_path / "r")})
    _, _, err = run_cli("train", config, "data.verify=false")
    assert """the features of item "B00'Y" (row 1) hold NaN""" in err


def test_no_table_that_is_read_is_written_over(run_cli, made, tmp_path):
    tables = {}
    for name, width in (("visual", 6), ("textual", 4)):
        tables[name] = tmp_path / f"{name}.parquet"
        columns = {"item": ["new_1", "new_2"], **{f"f{place}": [0.5, 1.0 + place] for place in range(width)}}
        pq.write_table(pa.table(columns), tables[name])
    cold = [word for name, place in tables.items() for word in ("--cold", f"{name}={place}")]
    before = tables["visual"].read_bytes()
    outcome = run_cli("recommend", made / "bundle", *cold, "--users", "user_1", "--out", tables["visual"])
    one_sentence(outcome, "visual.parquet")
    assert tables["visual"].read_bytes() == before
    status, out, err = run_cli("recommend", made / "bundle", *cold, "--only-cold", "--users", "user_1")
    assert (status, err) == (0, "")
    assert {"new_1", "new_2"} <= set(out.split())


def test_libraries_write_nothing_of_their_own(made, tmp_path):
    """DGL and METIS have words for both streams, from C++ too, and torch where Python collects its files."""
    metis_or_skip()
    done = launch("partition", made / "d", "--num-parts", 2, "--out", tmp_path / "p", env={"HOME": str(tmp_path)})
    assert done.stderr == ""
    assert done.stdout.startswith(f"dataset {tmp_path / 'p'}\n")
    kernel = "dgl" if has_dgl() else "csr"
    env = {"HOME": str(tmp_path), "DGLBACKEND": "mxnet"}  # a backend that is not there
    done = launch("train", made / "c.yaml", f"run.path={tmp_path / 'r'}", f"graph.kernel={kernel}", env=env)
    assert [
        line
        for line in done.stderr.splitlines()
        if not line.startswith(("a worker is", "epoch ", "propagation", "1 thread: "))
    ] == []
    assert not (tmp_path / ".dgl").exists()


def test_what_a_failing_library_has_said_is_shown(capfd):
    from diffmm_dist.graph.quiet import quietly

    with quietly():
        os.write(2, b"chatter\n")
        print("chatter")
    with pytest.raises(ValueError, match="broken"), quietly():
        os.write(1, b"why it broke\n")
        raise ValueError("broken")
    assert capfd.readouterr() == ("", "why it broke\n")
