import json
from pathlib import Path

import pytest

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.runs.config import config_from_text
from diffmm_dist.training.clip import clipped
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.worker import run_worker
from tests.support.builders import checkpoint_tensors, metrics_of, small_config, synthetic_dataset

USERS, ITEMS = 60, 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", users=USERS, items=ITEMS)


def manifest(dataset):
    return Dataset.open(dataset).manifest


def test_nothing_within_the_data_is_clipped(dataset):
    interactions = manifest(dataset).num_interactions("train")
    config = small_config(
        dataset,
        "run",
        train={"batch_size": interactions},
        eval={"batch_size": USERS, "k": [20, ITEMS]},
        model={
            "diffusion": {"rebuild_topk": ITEMS, "denoiser_hidden_dims": [5000]},
            "contrast": {"max_nodes": USERS},
        },
    )
    assert clipped(config, manifest(dataset)) == (config, [])


def test_everything_beyond_the_data_is_clipped_with_a_line_each(dataset):
    interactions = manifest(dataset).num_interactions("train")
    big = 10**9
    config = small_config(
        dataset,
        "run",
        train={"batch_size": big},
        eval={"batch_size": big, "k": [20, 4000]},
        model={"diffusion": {"rebuild_topk": big}, "contrast": {"max_nodes": big}},
    )
    used, lines = clipped(config, manifest(dataset))
    assert used.train.batch_size == interactions
    assert used.eval.batch_size == used.model.contrast.max_nodes == USERS
    assert used.model.diffusion.rebuild_topk == ITEMS
    assert used.eval.k == (20, 4000)
    assert lines == [
        f"train.batch_size 1,000,000,000 is clipped to the {interactions} training interactions",
        "eval.batch_size 1,000,000,000 is clipped to the 60 users",
        "model.diffusion.rebuild_topk 1,000,000,000 is clipped to the 40 items",
        "model.contrast.max_nodes 1,000,000,000 is clipped to the 60 users",
        "eval.k 4,000 ranks the 40 items that there are",
    ]


@pytest.mark.parametrize("model", ["diffmm", "lightgcn"])
def test_a_clipped_run_is_that_of_the_exact_values_bit_for_bit(dataset, tmp_path, model):
    interactions = manifest(dataset).num_interactions("train")
    exact = {
        "train": {"batch_size": interactions, "epochs": 2},
        "eval": {"batch_size": USERS},
    }
    beyond = {
        "train": {"batch_size": 10**9, "epochs": 2},
        "eval": {"batch_size": 10**9},
    }
    of_model = {"exact": (ITEMS, USERS), "beyond": (10**9, 10**9)}
    results = {}
    for name, sections in (("exact", exact), ("beyond", beyond)):
        settings = {"name": model}
        if model == "diffmm":
            topk, nodes = of_model[name]
            contrast = {"max_nodes": nodes, "contrastive_anchor": "main"}
            settings |= {"diffusion": {"rebuild_topk": topk}, "contrast": contrast}
        config = small_config(dataset, tmp_path / name, model=settings, **sections)
        results[name] = run_worker(config, stop_requested=lambda: False)
    assert results["exact"]["test"] == results["beyond"]["test"]
    assert metrics_of(tmp_path / "exact") == metrics_of(tmp_path / "beyond")
    tensors = {name: checkpoint_tensors(tmp_path / name / "checkpoints" / "epoch-00002") for name in results}
    assert tensors["exact"].keys() == tensors["beyond"].keys()
    for key, value in tensors["exact"].items():
        assert value.equal(tensors["beyond"][key]), key


def test_a_clipped_run_keeps_what_the_user_wrote(dataset, tmp_path, caplog):
    caplog.set_level("INFO", logger="diffmm_dist")
    sections = {"train": {"batch_size": 10**9, "epochs": 1}, "eval": {"batch_size": 10**9}}
    config = small_config(dataset, tmp_path / "run", **sections)
    result = run_worker(config, stop_requested=lambda: False)
    assert "train.batch_size 1,000,000,000 is clipped to the" in caplog.text
    assert config_from_text((tmp_path / "run" / "config.yaml").read_text(), source="config.yaml") == config
    written = json.loads((Path(tmp_path) / "run" / "result.json").read_text())
    for described in (result, written):
        assert described["config"]["train"]["batch_size"] == 10**9
    trained = load_trained(str(tmp_path / "run"))
    assert trained.config == config
    assert trained.evaluation([20]).measure(trained.model, "test")["recall@20"] == result["test"]["recall@20"]
    # The same command goes on with it.
    longer = small_config(dataset, tmp_path / "run", train={"batch_size": 10**9, "epochs": 2}, eval=sections["eval"])
    assert run_worker(longer, stop_requested=lambda: False)["epochs"] == 2
