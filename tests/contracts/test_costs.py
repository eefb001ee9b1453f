"""Every model says what it costs: the estimate of memory and the benchmarks of phases work for all that train."""

import json

import pytest
import torch

from diffmm_dist.bench.comm import by_purpose, measure, predict
from diffmm_dist.bench.epoch import bench_epoch
from diffmm_dist.bench.gpus import Assumptions, bench_gpus
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.models.registry import SETTINGS, entry_of
from diffmm_dist.parallel.world import World
from diffmm_dist.training.build import build_recipe, load_training_data
from diffmm_dist.training.estimate import needs_of
from tests.support.builders import small_config, synthetic_dataset

MODELS = [name for name in SETTINGS if entry_of(name).measures.work]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(
        tmp_path_factory.mktemp("data") / "d", users=150, items=60, interactions=2400, knowledge=True
    )


@pytest.fixture(params=MODELS)
def config(request, dataset, tmp_path):
    return small_config(dataset, tmp_path / "run", model={"name": request.param})


def phases_of(config):
    data = load_training_data(config, Dataset.open(config.data.path), World.single())
    return build_recipe(config, data, device=torch.device("cpu")).phases


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - set(MODELS)))
def test_a_model_without_work_has_no_phases(dataset, tmp_path, name):
    assert list(phases_of(small_config(dataset, tmp_path / "run", model={"name": name}))) == []


def test_memory_and_work_are_said_of_every_phase(config):
    entry, manifest = entry_of(config.model.name), Dataset.open(config.data.path).manifest
    names = {phase.name for phase in phases_of(config)}
    for num_workers in (1, 4):
        needs = needs_of(config, manifest, num_workers=num_workers)
        assert set(entry.memory(config.model, needs).phases) == names
        works = entry.measures.work(config.model, needs)
        assert set(works) == names
        for work in works.values():
            assert work.steps >= 1
            assert work.flops >= 0
            assert work.memory_bytes > 0
            assert (work.exchanges > 0) <= (num_workers > 1)


def test_benchmarks_of_phases_work(config, tmp_path):
    for size in (1, 2):
        bench_gpus(config, [size], Assumptions(40, 2000, 25, 30), out=str(tmp_path / "g.json"))
        seconds = json.loads((tmp_path / "g.json").read_text())["gpus"][str(size)]["seconds"]
        assert min(seconds.values()) > 0
    bench_epoch(config, repeats=1, out=str(tmp_path / "e.json"))
    (entry,) = json.loads((tmp_path / "e.json").read_text())["sizes"]
    assert list(entry["operations"]["epoch"]["variants"]) == [phase.name for phase in phases_of(config)]


def test_one_worker_sends_nothing_and_two_send_something(config):
    dataset = Dataset.open(config.data.path)
    data = load_training_data(config, dataset, World.single())
    (alone,) = predict(config, dataset, data, 1)
    assert set(alone) <= {phase.name for phase in phases_of(config)}
    assert not any(by_purpose(alone).values())
    found = measure(config, alone)
    assert found.sent == by_purpose(alone)
    assert not any(found.exchanges.values())
    assert all(min(by_purpose(worker).values()) > 0 for worker in predict(config, dataset, data, 2))


def test_losses_that_are_followed_are_recorded(config):
    followed = entry_of(config.model.name).measures.losses
    names = {phase.name for phase in phases_of(config)}
    assert followed
    assert {tag.split("/")[0] for tag in followed} <= names
