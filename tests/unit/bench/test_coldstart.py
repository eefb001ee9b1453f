"""Users and items that are left out: what a run is trained on, and what is measured for them."""

import json

import numpy as np
import pytest

from diffmm_dist.bench.coldstart import bench_coldstart
from diffmm_dist.bench.held_out import write_without
from diffmm_dist.bench.report import markdown
from diffmm_dist.data.dataset import Dataset
from tests.support.builders import synthetic_dataset, write_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic_dataset(
        tmp_path_factory.mktemp("data") / "d", users=80, items=50, interactions=1500, knowledge=True
    )


@pytest.mark.parametrize(("axis", "rows"), [("users", [0, 7, 79]), ("items", [3, 4, 49])])
def test_what_is_left_out_is_nowhere_and_the_rest_is_as_it_was(data, tmp_path, axis, rows):
    whole = Dataset.open(data)
    write_without(whole, str(tmp_path / "d"), axis, np.array(rows))
    found = Dataset.open(str(tmp_path / "d"))
    kept = {name: np.arange(count) for name, count in (("users", whole.num_users), ("items", whole.num_items))}
    kept[axis] = np.setdiff1d(kept[axis], rows)
    for name, numbers in kept.items():
        assert found.original_ids(name).to_pylist() == whole.original_ids(name).take(numbers).to_pylist()
    for split in ("train", "valid", "test"):
        expected = whole.interactions(split).dense()[kept["users"]][:, kept["items"]]
        assert (found.interactions(split).dense() == expected).all()
    for modality in whole.manifest.modalities:
        assert (found.features(modality) == whole.features(modality)[kept["items"]]).all()


def test_lists_for_what_was_left_out_are_measured(data, tmp_path):
    config = write_config(tmp_path / "c.yaml", data={"path": data}, run={"path": "unused"}, model={"name": "lightgcn"},
                          train={"epochs": 2}, monitoring={"tensorboard": False})  # fmt: skip
    out = tmp_path / "cold.json"
    found = bench_coldstart(config, [], users=0.2, items=0.2, seed=3, folder=str(tmp_path / "f"), out=str(out))
    assert json.loads(out.read_text()) == found
    folded, cold = found["fold_in"], found["cold_items"]
    assert (folded["users"], cold["items"]) == (16, 10)
    for part in (folded, cold):
        for name, figures in part["lists"].items():
            assert 0 <= figures["recall@20"] <= 1, name
    # Of ten items, a list of twenty has all.
    assert {figures["recall@20"] for figures in cold["lists"].values()} == {1.0}
    for name in ("trained with them", "folded in, by the run that was trained with them", "popularity"):
        assert folded["lists"][name]["recall@20"] > 0
    low, ratio, high = (folded["folded in / trained with them"][key] for key in ("low", "ratio", "high"))
    assert low <= ratio <= high
    page = markdown([str(out)])
    for text in ("| users held out |", "| items held out |", "| content kNN, mean cosine |", "in 95 % of resamples"):
        assert text in page
