"""docs/adding-a-model.md is a model: its blocks of code are put into a folder, and what they make is trained."""

import importlib
import json
import re
import sys

import pytest
import torch

from diffmm_dist import models
from diffmm_dist.models.registry import FOLDERS
from diffmm_dist.runs.config import reference_markdown
from tests.support.builders import ROOT, metrics_of, synthetic_dataset, write_config

PAGE = ROOT / "docs" / "adding-a-model.md"
BLOCK = re.compile(r"^### (?P<name>[^\n]+)\n(?:(?!^### |^```).*\n)*```python\n(?P<code>(?:(?!^```).*\n)*)```", re.M)
FILES = ["settings.py", "model.py", "phases.py", "costs.py", "recipe.py"]


def blocks():
    return {match["name"].strip("`"): match["code"] for match in BLOCK.finditer(PAGE.read_text())}


@pytest.fixture
def factors(tmp_path, monkeypatch):
    """The model of the page, as if its folder lay beside the others."""
    folder = tmp_path / "more" / "factors"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Factors."""\n')
    for name in FILES:
        (folder / name).write_text(blocks()[name])
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder.parent)])
    before = dict(FOLDERS)
    exec(blocks()["The registry"], {"FOLDERS": FOLDERS})
    importlib.invalidate_caches()
    yield
    FOLDERS.clear()
    FOLDERS.update(before)
    for name in [name for name in sys.modules if name.startswith("diffmm_dist.models.factors")]:
        del sys.modules[name]
    if hasattr(models, "factors"):
        del models.factors


@pytest.fixture
def config(tmp_path):
    data = synthetic_dataset(tmp_path / "d")
    return write_config(
        tmp_path / "config.yaml", data={"path": data}, run={"path": str(tmp_path / "run")},
        model={"name": "factors"}, train={"epochs": 1},
    )  # fmt: skip


def test_the_page_has_every_file():
    assert list(blocks()) == [*FILES, "The registry"]


def test_the_model_of_the_page_is_trained_as_any_other(factors, config, run_cli, tmp_path):
    status, out, err = run_cli("train", "--config", config)
    assert (status, "factors, seed 421: epoch 0 of 0..0" in " ".join(out.split())) == (0, True), err
    (record,) = metrics_of(tmp_path / "run")
    assert {"recommend/bpr", "recommend/l2", "recommend/weight", "valid/recall@20"} <= set(record)
    assert record["recommend/weight"] != 0
    assert 0 < json.loads((tmp_path / "run" / "result.json").read_text())["test"]["recall@20"] <= 1
    assert run_cli("train", "--config", config, "train.epochs=2")[0] == 0
    assert len(metrics_of(tmp_path / "run")) == 2
    assert run_cli("evaluate", tmp_path / "run")[0] == 0
    assert run_cli("export", tmp_path / "run", "--out", tmp_path / "bundle")[0] == 0
    status, out, _ = run_cli("recommend", tmp_path / "bundle", "--users", "user_3", "--k", "2")
    assert (status, out.count("user_3")) == (0, 2)


def test_benchmarks_work_for_it(factors, config, run_cli, tmp_path):
    status, _, err = run_cli("bench", "gpus", config, "--workers", "1,2", "--out", tmp_path / "g.json")
    assert status == 0, err
    work = json.loads((tmp_path / "g.json").read_text())["gpus"]["2"]["work"]["recommend"]
    assert min(work["memory_bytes"], work["exchanges"]) > 0


def test_its_settings_are_checked_and_documented(factors, config, run_cli):
    status, _, err = run_cli("train", "--config", config, "model.weight_learning_rate=0")
    assert (status, "'model.weight_learning_rate' is 0" in err) == (1, True)
    assert "Learning rate of the weight of popularity." in reference_markdown()


def test_another_test_does_not_know_it(config, run_cli):
    status, _, err = run_cli("train", "--config", config)
    assert (status, "factors" in err) == (1, True)


def test_the_score_is_what_the_page_says(factors):
    from diffmm_dist.models.factors.model import Factors

    from tests.support.builders import random_pairs, training_data

    data = training_data(random_pairs(8, 5), {})
    model = Factors(data, seed=1, embedding_dim=3)
    torch.nn.init.constant_(model.weight, 0.5)
    users, items = model.embeddings()
    counts = data.interactions.dense().sum(0)
    expected = model.user_embedding @ model.item_embedding.T + 0.5 * torch.log1p(counts.float())
    torch.testing.assert_close(users @ items.T, expected)
