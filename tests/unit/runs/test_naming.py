"""Runs are called by what tells them apart."""

import pytest

from diffmm_dist.runs.config import Config
from diffmm_dist.runs.naming import differing_settings, run_names, setting_words


def config(path="runs/a", **settings):
    tree = {"data": {"path": "d"}, "run": {"path": path}, "model": {"name": "lightgcn"}}
    for key, value in settings.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return Config.model_validate(tree)


@pytest.mark.parametrize(("settings", "names"), [
    ([{}], ["lightgcn"]),
    ([{}, {"model__name": "popularity"}], ["lightgcn", "popularity"]),
    ([{"run__seed": 1}, {"run__seed": 2}], ["lightgcn, seed=1", "lightgcn, seed=2"]),
    ([{"model__num_layers": 2, "run__seed": 1}, {"run__seed": 2}],
     ["lightgcn, num_layers=2, seed=1", "lightgcn, num_layers=1, seed=2"]),
    # What another model has is no difference between these.
    ([{"model__num_layers": 2}, {"model__num_layers": 3}, {"model__name": "popularity"}],
     ["lightgcn, num_layers=2", "lightgcn, num_layers=3", "popularity"]),
    # Where it ran is said where nothing else tells runs apart.
    ([{"cluster__threads_per_worker": 1}, {"train__epochs": 3}], ["lightgcn, epochs=50", "lightgcn, epochs=3"]),
    ([{"cluster__threads_per_worker": 1}, {}],
     ["lightgcn, threads_per_worker=1", "lightgcn, threads_per_worker=0"]),
    ([{"data__path": "sets/x"}, {"data__path": "sets/y"}], ["lightgcn, data=x", "lightgcn, data=y"]),
])  # fmt: skip
def test_names(settings, names):
    configs = [config(**one) for one in settings]
    assert run_names(configs, [f"runs/{place}" for place in range(len(configs))]) == names


def test_runs_of_the_same_settings_are_told_apart_by_folder_and_number():
    configs = [config(), config(), config()]
    assert run_names(configs, ["x/a", "x/b", "y/a"]) == ["lightgcn (a) #1", "lightgcn (b)", "lightgcn (a) #2"]


def test_many_differences_are_counted():
    more = {"model__num_layers": 2, "model__embedding_dim": 8, "train__learning_rate": 0.1, "train__batch_size": 3,
            "train__l2_weight": 0.5}  # fmt: skip
    name = run_names([config(), config(**more)], ["a", "b"])[1]
    assert name.endswith(", 1 more settings")


def test_all_differences_have_their_whole_keys():
    first, second = differing_settings([config("a", run__seed=1), config("b", run__seed=2, model__name="popularity")])
    assert first["model.num_layers"] == 1
    assert setting_words(second) == "run.seed=2, model.name=popularity"
