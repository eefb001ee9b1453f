"""`bench students`: what it measures of runs, what it refuses, its table and its picture."""

import json
import re

import pytest

from diffmm_dist.bench.report import markdown
from diffmm_dist.bench.students import bench_students, groups_of
from diffmm_dist.errors import UserError
from tests.support.builders import small_config, synthetic_dataset, train_alone


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = synthetic_dataset(folder / "d", users=60, items=30, interactions=900)
    models = {"wide": {"name": "lightgcn", "embedding_dim": 16}, "narrow": {"name": "lightgcn", "embedding_dim": 4}}
    for name, model in models.items():
        for seed in (1, 2):
            train_alone(small_config(data, folder / f"{name}-{seed}", model=model, train={"epochs": 1},
                                     run={"path": str(folder / f"{name}-{seed}"), "seed": seed}))  # fmt: skip
    teacher = str(folder / "wide-1")
    student = {"name": "promptmm", "teacher": teacher, "student": {"embedding_dim": 4, "num_layers": 0}}
    train_alone(small_config(data, folder / "student", model=student, train={"epochs": 1}))
    train_alone(small_config(data, folder / "both", model={"name": "promptmm", "embedding_dim": 4},
                             train={"epochs": 1, "batch_size": 40}))  # fmt: skip
    return folder


def measured(runs, tmp_path, **groups):
    paths = {name: [str(runs / run) for run in names] for name, names in groups.items()}
    out, plot = tmp_path / "s.json", tmp_path / "s.svg"
    bench_students(paths, threads=1, repeats=1, out=str(out), plot=str(plot))
    return json.loads(out.read_text()), plot.read_text()


def test_what_is_deployed_is_counted(runs, tmp_path):
    document, picture = measured(
        runs, tmp_path, wide=["wide-1", "wide-2"], narrow=["narrow-1"], student=["student"], both=["both"]
    )
    found = document["groups"]
    assert {name: group["parameters"] for name, group in found.items()} == {
        "wide": 90 * 16, "narrow": 90 * 4, "student": 90 * 4, "both": 90 * 4,
    }  # fmt: skip
    assert found["student"]["bundle_bytes"] < found["wide"]["bundle_bytes"]
    recall = found["wide"]["test"]["recall@20"]
    results = [json.loads((runs / f"wide-{seed}" / "result.json").read_text()) for seed in (1, 2)]
    assert recall["values"] == [result["test"]["recall@20"] for result in results]
    assert recall["mean"] == pytest.approx(sum(recall["values"]) / 2)
    assert found["narrow"]["test"]["recall@20"]["spread"] == 0
    assert all(group["rank_seconds"] > 0 and group["epoch_seconds"] > 0 for group in found.values())
    for name in found:
        assert name in re.sub(r"<[^>]*>", "", picture) or f"<!-- {name} -->" in picture


def test_the_report_shows_it(runs, tmp_path):
    measured(runs, tmp_path, wide=["wide-1", "wide-2"])
    lines = markdown([str(tmp_path / "s.json")]).splitlines()
    assert lines[0].startswith("| runs | test recall@20 |")
    assert lines[2].startswith("| wide | ")
    assert "| 2 | 16 | 1,440 |" in lines[2]


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    other = synthetic_dataset(tmp_path / "d", users=50, items=30, interactions=700)
    train_alone(small_config(other, tmp_path / "other", model={"name": "popularity"}))
    with pytest.raises(UserError, match="not of one dataset"):
        measured(runs, tmp_path, a=["wide-1"], b=[tmp_path / "other"])
    with pytest.raises(UserError, match="nothing"):
        measured(runs, tmp_path, a=["nothing"])


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["runs/a"], "--group runs/a does not name a group and its runs; write NAME=RUN,RUN"),
        (["a="], "--group a= does not name a group"),
        (["a=x", "a=y"], "--group a is given twice"),
    ],
)
def test_groups_are_named_with_their_runs(texts, sentence):
    with pytest.raises(UserError, match=sentence):
        groups_of(texts)


def test_the_command(runs, tmp_path, run_cli):
    out = tmp_path / "s.json"
    group = f"LightGCN={runs / 'wide-1'},{runs / 'wide-2'}"
    status, said, err = run_cli("bench", "students", "--group", group, "--out", out)
    assert status == 0, err
    assert "LightGCN" in said
    assert list(json.loads(out.read_text())["groups"]) == ["LightGCN"]
