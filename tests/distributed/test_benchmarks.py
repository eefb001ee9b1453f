"""Benchmarks of many workers: the predicted traffic is what real workers send, and scaling measures every phase."""

import json
import os
from multiprocessing import get_context

import pytest

from diffmm_dist.bench import threads
from diffmm_dist.bench.comm import bench_comm
from diffmm_dist.bench.overlap import bench_overlap
from diffmm_dist.bench.report import markdown
from diffmm_dist.bench.scaling import bench_scaling, efficiency
from diffmm_dist.cores import usable_cores
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.parallel import group
from diffmm_dist.preparation.partitioning import partition_dataset
from tests.support.builders import small_config, synthetic_dataset
from tests.support.forked import START


@pytest.fixture(autouse=True)
def _workers_have_imported_everything(monkeypatch):
    monkeypatch.setattr(group, "get_context", lambda _: get_context(START))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    source = synthetic_dataset(folder / "d", users=150, items=60, interactions=2400, knowledge=True)
    partition_dataset(source, str(folder / "parts"), num_parts=5, method="random", seed=3)
    return str(folder / "parts")


SETTINGS = {
    "main anchor": {"model": {"contrast": {"contrastive_anchor": "main"}}},
    "denoisers spread over the items": {"model": {"denoiser": {"sharding": "items", "noise": "hidden"}}},
    "modal anchor in the batch": {
        "model": {
            "num_layers": 2,
            "embedding_dim": 8,
            "contrast": {"contrastive_anchor": "modal", "negatives": "batch", "max_nodes": 20},
            "diffusion": {"rebuild_topk": 3, "denoiser_hidden_dims": [6, 4]},
        },
        "train": {"batch_size": 64},  # two rows of two workers
    },
    "all views by columns": {"graph": {"kernel": "csr", "layout": "columns"}},
    "views in the batch by columns": {
        "model": {"contrast": {"contrastive_anchor": "main", "negatives": "batch", "max_nodes": 20}},
        "graph": {"kernel": "csr", "layout": "columns"},
    },
    "lightgcn": {"model": {"name": "lightgcn", "num_layers": 2}},
    "lightgcn by columns": {"model": {"name": "lightgcn"}, "graph": {"kernel": "csr", "layout": "columns"}},
    "adagcl": {"model": {"name": "adagcl", "num_layers": 3, "embedding_dim": 8}},
    "diffkg": {"model": {"name": "diffkg", "knowledge": {"num_hops": 2, "max_facts": 3}}},
    "diffkg, another form": {
        "model": {
            "name": "diffkg",
            "embedding_dim": 8,
            "num_layers": 1,
            "contrast": {"negatives": "batch", "max_nodes": 20},
            "diffusion": {"rows": "items", "denoiser_hidden_dims": [6, 4]},
            "denoiser": {"sharding": "items"},
        },
        "train": {"batch_size": 64},
    },
    "several batches a step by columns": {
        "model": {"contrast": {"negatives": "batch"}},
        "graph": {"layout": "columns"},
        "train": {"batch_size": 64, "propagate_every": 3},
    },
    "lightgcn, several batches a step": {
        "model": {"name": "lightgcn"},
        "train": {"batch_size": 64, "propagate_every": 2},
    },
    "adagcl, reference": {"model": {"name": "adagcl", "mode": "reference"}},
    "promptmm": {"model": {"name": "promptmm", "network": {"num_layers": 3}, "student": {"num_layers": 2}}},
    "promptmm, as released": {"model": {"name": "promptmm", "mode": "release", "embedding_dim": 8}},
    "promptmm, frozen": {
        "model": {"name": "promptmm", "distillation": {"train_prompt": False}, "student": {"kind": "mm_light"}}
    },
}
PURPOSES = {"lightgcn": ["propagation"], "promptmm": ["propagation"], "adagcl": ["propagation", "contrast"]}


# Every model meets two and three workers; those with denoisers four too, of which two share a denoiser's columns.
MEASURED = {name: [2, 3] for name in SETTINGS} | {
    "main anchor": [2, 4],
    "views in the batch by columns": [2, 4],
    "denoisers spread over the items": [3, 4],
    "modal anchor in the batch": [2, 4],
    "diffkg": [2, 4],
    "diffkg, another form": [3, 4],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_prediction_equals_measurement(dataset, tmp_path, name):
    out, measured = tmp_path / "comm.json", MEASURED[name]
    config = small_config(dataset, tmp_path / "run", **SETTINGS[name])
    bench_comm(config, predicted=[1, 8, 64], measured=measured, out=str(out))  # raises where they differ
    found = json.loads(out.read_text())
    assert list(found["measured_bytes"]) == [str(size) for size in measured]
    assert list(map(int, found["predicted_bytes"])) == [1, *measured, 8, 64]
    purposes = PURPOSES.get(config.model.name, ["propagation", "contrast", "denoiser"])
    if config.graph.layout == "columns":
        purposes = ["layout", "layout_tables", *purposes[1:]]
    assert found["predicted_bytes"]["1"] == [dict.fromkeys(purposes, 0)]
    for size, workers in found["measured_bytes"].items():
        assert workers == found["predicted_bytes"][size]
        assert all(worker[purpose] > 0 for worker in workers for purpose in purposes)
    table = markdown([str(out)]).splitlines()
    per = {"layout_tables": "layout tables, MiB per epoch"}
    columns = [per.get(purpose, f"{purpose}, MiB per step") for purpose in purposes]
    assert table[0] == f"| {' | '.join(['workers (mean / most)', *columns, 'measured'])} |"
    assert [line.split(" | ")[-1] for line in table[2:7]] == ["- |", "equal |", "equal |", "- |", "- |"]


def test_overlap_is_measured_on_a_slowed_network(dataset, tmp_path):
    out, network_mb_s = tmp_path / "overlap.json", 0.5
    config = small_config(dataset, tmp_path / "run")
    bench_overlap(config, num_workers=2, network_mb_s=network_mb_s, num_steps=2, repeats=1, out=str(out))
    found = json.loads(out.read_text())
    assert set(found["speedup"]) == {"denoise", "rebuild", "recommend"}
    steps = -(-Dataset.open(dataset).manifest.num_interactions("train") // config.train.batch_size)
    assert list(found["overlap"]) == ["one after the other", "overlapped"]
    for (result,) in found["overlap"].values():
        sent = result["sent_bytes_per_step"]["recommend"]["propagation"]
        assert result["epoch_s"]["recommend"] > 0.8 * steps * sent / (network_mb_s * 1e6)  # sleeping takes its time


def test_scaling_measures_every_phase(dataset, tmp_path):
    out = tmp_path / "scaling.json"
    bench_scaling(small_config(dataset, tmp_path / "run"), [1, 2], num_steps=2, repeats=1, out=str(out))
    found = json.loads(out.read_text())
    assert set(found["efficiency"]["2"]) == {"denoise", "rebuild", "recommend"}
    assert found["scaling"]["1"][0]["sent_bytes_per_step"]["recommend"] == {}
    assert found["scaling"]["2"][0]["sent_bytes_per_step"]["recommend"]["propagation"] > 0
    assert not (tmp_path / "run").exists()
    assert "recommend, efficiency" in markdown([str(out)])


def test_weak_scaling_gives_every_size_its_dataset_and_batch(dataset, tmp_path):
    out, config = tmp_path / "scaling.json", small_config(dataset, tmp_path / "run")
    small = synthetic_dataset(tmp_path / "small", users=75, items=60, interactions=1200)
    bench_scaling(config, [1, 2], num_steps=1, repeats=1, out=str(out), datasets=[small, dataset])
    found = json.loads(out.read_text())
    assert found["datasets"] == [small, dataset]
    seconds = {size: found["scaling"][size][0]["epoch_s"]["denoise"] for size in ("1", "2")}
    assert found["efficiency"]["2"]["denoise"]["median"] == pytest.approx(seconds["1"] / seconds["2"])
    with pytest.raises(UserError, match="given 1 times for 2 numbers of workers"):
        bench_scaling(config, [1, 2], num_steps=1, repeats=1, out=str(out), datasets=[small])


def test_efficiency_is_one_where_twice_the_workers_take_half_the_time():
    measured = {
        1: [{"epoch_s": {"a": 8.0}}, {"epoch_s": {"a": 8.0}}],
        2: [{"epoch_s": {"a": 4.0}}, {"epoch_s": {"a": 5.0}}],
    }
    assert efficiency(measured, 1, 2)["a"] == {"median": 0.9, "min": 0.8, "max": 1.0}


@pytest.mark.timeout(600)
def test_threads_are_timed_in_processes_of_their_own(tmp_path, monkeypatch):
    """Every process loads torch, so that the settings which differ from another only by a variable's value are left."""
    every = threads.settings
    waiting = {"it, waiting as libgomp does", "it, waiting asleep"}
    monkeypatch.setattr(threads, "settings", lambda cores: {
        name: {variant: setting for variant, setting in variants.items() if variant not in waiting}
        for name, variants in every(cores).items()
    })  # fmt: skip
    out = tmp_path / "threads.json"
    config = small_config(synthetic_dataset(tmp_path / "d"), tmp_path / "run", graph={"kernel": "csr"})
    variables = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

    def own():
        return os.sched_getaffinity(0), [os.environ.get(name) for name in variables]

    before = own()
    threads.bench_threads(config, repeats=1, busy=1, out=str(out))
    assert own() == before
    one_core, all_cores = json.loads(out.read_text())["sizes"][0]["operations"].values()
    assert one_core["facts"]["loops beside"] == 1
    assert one_core["facts"]["threads, what may be used"] == 1
    assert one_core["facts"]["threads, all cores of the machine"] == usable_cores().of_machine
    assert all_cores["variants"]["what may be used"]["before_over_after"] == 1
    assert "| one thread | " in markdown([str(out)])
