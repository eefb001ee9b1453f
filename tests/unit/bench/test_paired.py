"""Runs compared user by user: the same figures as `evaluate` has, and a difference where there is one."""

import json

import pytest

from diffmm_dist.bench.paired import bench_paired, user_metrics
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.partitioning import partition_dataset
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.worker import run_worker
from tests.support.builders import small_config, synthetic_dataset


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = synthetic_dataset(folder / "d", users=150, items=60, interactions=2400)
    partition_dataset(data, str(folder / "parts"), num_parts=3, method="random", seed=2)
    for name, place, model in (("a", data, "lightgcn"), ("b", data, "popularity"), ("c", folder / "parts", "lightgcn")):
        config = small_config(place, folder / name, model={"name": model}, graph={"kernel": "csr"})
        run_worker(config, stop_requested=lambda: False, show_progress=False)
    return folder


def test_figures_are_those_of_the_evaluation(runs):
    for name in ("a", "c"):
        run = load_trained(str(runs / name))
        expected = run.evaluation([20]).measure(run.model, "test")
        recall, ndcg = user_metrics(run, ("train", "valid"), 20).mean(axis=1)
        assert (recall, ndcg) == (pytest.approx(expected["recall@20"]), pytest.approx(expected["ndcg@20"]))


def test_a_run_is_no_better_than_itself_and_differs_from_another(runs, tmp_path):
    a, b = str(runs / "a"), str(runs / "b")
    bench_paired([a], [a], k=20, out=str(tmp_path / "same.json"))
    bench_paired([a, a], [b], k=20, out=str(tmp_path / "other.json"))
    same, other = (json.loads((tmp_path / f"{name}.json").read_text())["masked"] for name in ("same", "other"))
    for masked in ("seen", "train"):
        found = same[masked]["recall"]
        assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)
        found = other[masked]["recall"]
        assert found["difference"] == pytest.approx(found["first"]["mean"] - found["second"]["mean"])
        assert found["low"] < found["difference"] < found["high"]
        assert (found["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)
        assert len(found["first"]["values"]) == 2


def test_runs_of_different_datasets_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="not of one dataset"):
        bench_paired([str(runs / "a")], [str(runs / "c")], k=5, out=str(tmp_path / "x.json"))
