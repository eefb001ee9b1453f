"""Whole runs on several workers: the same curves, checkpoints for any number of workers, errors on all."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from diffmm_dist.errors import LostWorkerError, StoppedError, TakenOverError, UserError
from diffmm_dist.models.common import denoising
from diffmm_dist.models.diffmm.recipe import item_shards
from diffmm_dist.models.registry import entry_of
from diffmm_dist.training.worker import run_worker
from tests.support.builders import checkpoint_tensors, metrics_of, small_config, synthetic_dataset
from tests.support.damage import flip
from tests.support.projector import items_of
from tests.support.workers import on_workers

DIFFKG = {
    "name": "diffkg", "knowledge": {"num_hops": 2, "max_facts": 4}, "denoiser": {"sharding": "items"},
    "diffusion": {"rebuild_topk": 2},
}  # fmt: skip
MODELS = {
    "diffmm": {"model": {"name": "diffmm"}},
    "diffmm, modal anchor": {
        "model": {
            "name": "diffmm",
            "num_layers": 2,
            "modality_projection": "affine",
            "diffusion": {"rebuild_topk": 3, "edge_keep_prob": 1.0},
            "contrast": {"contrastive_anchor": "modal", "negatives": "batch", "max_nodes": 25},
        },
    },
    "diffmm, denoisers spread over the items": {"model": {"denoiser": {"sharding": "items", "noise": "hidden"}}},
    "adagcl": {"model": {"name": "adagcl", "num_layers": 3}},
    "adagcl as released": {"model": {"name": "adagcl", "mode": "reference"}},
    "diffkg": {"model": DIFFKG},
    "promptmm": {"model": {"name": "promptmm", "distillation": {"train_prompt": False, "candidates": "teacher"}}},
    "promptmm as released": {"model": {"name": "promptmm", "mode": "release"}},
    "lightgcn": {"model": {"name": "lightgcn", "num_layers": 2}},
    "popularity": {"model": {"name": "popularity"}},
}

SHORT = {name: {**model, "train": {"epochs": 2, "batch_size": 128}} for name, model in MODELS.items()}


COLUMNS = {"graph": {"kernel": "csr", "layout": "columns"}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(
        tmp_path_factory.mktemp("data") / "d", users=150, items=60, interactions=1200, knowledge=True
    )


def train(world, dataset, run, sections, stop_after=None):
    """A run of one worker of a group; ``stop_after`` steps the first worker asks for a stop."""
    polls = 0

    def stop_requested():
        nonlocal polls
        polls += 1
        return world.is_first and polls == stop_after

    config = small_config(dataset, run, **sections)
    if stop_after is None:
        run_worker(config, stop_requested=stop_requested)
        return
    with pytest.raises(StoppedError):
        run_worker(config, stop_requested=stop_requested)


def result_of(run):
    return json.loads((Path(run) / "result.json").read_text())


def test_small_runs_use_every_shape_of_mesh(dataset, tmp_path):
    config = small_config(dataset, tmp_path, train={"batch_size": 64})
    assert [item_shards(config.model, batch_size=64, num_items=60, num_workers=size) for size in (1, 2, 3, 4)] == [
        1,
        1,
        1,
        2,
    ]


@pytest.mark.parametrize("size", [3, 4])
def test_any_number_of_workers_gives_the_same_curves(dataset, tmp_path, size, of_one_worker):
    """Those of two are the golden ones (test_golden_curves.py); four make a mesh, where denoisers are shared.

    Where tables can propagate by columns they do here; the golden curves are by rows.
    """
    names = [name for name in MODELS if size == 3 or name.startswith("diff")]
    can = {name: entry_of(MODELS[name]["model"].get("name", "diffmm")).by_columns for name in names}
    assert True in can.values()
    layouts = {name: COLUMNS if can[name] else {} for name in names}
    runs = {name: (tmp_path / name, SHORT[name] | layout) for name, layout in layouts.items()}
    on_workers(size, *(partial(train, dataset=dataset, run=run, sections=given) for run, given in runs.values()))
    for name in names:
        run, whole = tmp_path / name, of_one_worker / name
        for record, expected in zip(metrics_of(run), metrics_of(whole), strict=True):
            assert record == pytest.approx(expected, rel=1e-4, abs=1e-6), name
        assert result_of(run)["test"] == pytest.approx(result_of(whole)["test"]), name
    for name in set(names) - {"popularity"}:
        found, expected = items_of(tmp_path / name), items_of(of_one_worker / name)
        assert found.keys() == expected.keys()
        for item, (vector, count) in expected.items():
            assert found[item] == (pytest.approx(vector, rel=1e-2, abs=1e-3), count), name


@pytest.fixture(scope="module")
def of_one_worker(dataset, tmp_path_factory):
    """A run of each model on one worker."""
    folder = tmp_path_factory.mktemp("one")
    on_workers(1, *(partial(train, dataset=dataset, run=folder / name, sections=SHORT[name]) for name in MODELS))
    return folder


@pytest.mark.parametrize("model", [{"name": "diffmm"}, DIFFKG], ids=lambda model: model["name"])
def test_a_run_goes_on_with_another_number_of_workers(dataset, tmp_path, model):
    """Two workers, stopped inside an epoch; then three; then one: the same numbers as one worker all along.

    Two have their tables by columns, where the model can.
    """
    sections = {"model": model, "train": {"epochs": 3, "batch_size": 64, "learning_rate": 1e-3}}
    on_workers(1, partial(train, dataset=dataset, run=tmp_path / "whole", sections=sections))
    run = tmp_path / "parts"
    first = sections | (COLUMNS if entry_of(model["name"]).by_columns else {})
    on_workers(2, partial(train, dataset=dataset, run=run, sections=first, stop_after=13))
    on_workers(3, partial(train, dataset=dataset, run=run, sections=sections, stop_after=30))
    on_workers(1, partial(train, dataset=dataset, run=run, sections=sections))
    for record, expected in zip(metrics_of(run), metrics_of(tmp_path / "whole"), strict=True):
        assert record == pytest.approx(expected, rel=1e-3, abs=1e-5)
    newest = [sorted((path / "checkpoints").iterdir())[-1] for path in (run, tmp_path / "whole")]
    tensors, expected = (checkpoint_tensors(path) for path in newest)
    assert set(tensors) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=1e-2, atol=1e-3, msg=lambda text, k=key: f"{k}: {text}")


def check_errors(world, dataset, folder):
    """What one worker alone can see is raised on every worker."""
    config = small_config(dataset, folder / "run", train={"epochs": 1, "learning_rate": 1e30})
    with pytest.raises(UserError, match="phase"):
        run_worker(config, stop_requested=lambda: False)
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "checkpoints").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="holds a run but" if world.is_first else "another worker"):
        run_worker(small_config(dataset, folder / "taken"), stop_requested=lambda: False)


def test_errors_are_raised_on_every_worker(dataset, tmp_path):
    on_workers(2, partial(check_errors, dataset=dataset, folder=tmp_path))


def check_columns(world, dataset, folder):
    """More workers than columns, and a model whose tables cannot propagate by them."""
    few = small_config(dataset, folder / "few", model={"name": "lightgcn", "embedding_dim": 1}, **COLUMNS)
    with pytest.raises(UserError, match="some of the 1 columns .*, but there are 2 workers; set it to rows"):
        run_worker(few, stop_requested=lambda: False)
    other = small_config(dataset, folder / "other", model={"name": "adagcl"}, **COLUMNS)
    with pytest.raises(UserError, match="^graph.layout=columns is for diffmm, .*, not for adagcl; set it to rows"):
        run_worker(other, stop_requested=lambda: False)
    several = small_config(
        dataset, folder / "other", model={"name": "promptmm"}, train={"propagate_every": 2}, **COLUMNS
    )
    both = "^graph.layout=columns is for .*; train.propagate_every=2 is for diffmm, .*, not for promptmm; set it to 1$"
    with pytest.raises(UserError, match=both):
        run_worker(several, stop_requested=lambda: False)
    assert not (folder / "other").exists()


def test_tables_that_cannot_propagate_by_columns_are_refused(dataset, tmp_path):
    on_workers(2, partial(check_columns, dataset=dataset, folder=tmp_path))


def check_damage(world, dataset, folder):
    """Every worker goes on from the same checkpoint, though one alone reads the damaged file."""
    run = folder / "run"
    sections = {"model": {"name": "lightgcn"}, "graph": {"kernel": "csr"}, "checkpoint": {"keep": 2}}
    train(world, dataset, run, {**sections, "train": {"epochs": 2}})
    if world.is_first:
        flip(run / "checkpoints" / "epoch-00002" / "__1_0.distcp", 0.5)
    torch.distributed.barrier()
    for path in (run, folder / "whole"):
        train(world, dataset, path, {**sections, "train": {"epochs": 3}})
    if world.is_first:
        assert result_of(run)["notes"] == ["checkpoint epoch-00002 was damaged; the run went on from epoch-00001"]
        assert metrics_of(run) == metrics_of(folder / "whole")


def test_workers_agree_on_the_newest_good_checkpoint(dataset, tmp_path):
    on_workers(2, partial(check_damage, dataset=dataset, folder=tmp_path))


def check_taken_over(world, dataset, folder):
    """The first worker alone has the lock; when it is another's, all end together and nothing more is written."""
    polls, lock = 0, folder / "run" / "lock"

    def stop_requested():
        nonlocal polls
        polls += 1
        if world.is_first and polls == 9:
            lock.write_text(json.dumps({"owner": "x", "host": "elsewhere", "process": 7, "writer": 8}))
        return False

    config = small_config(dataset, folder / "run", train={"epochs": 3, "batch_size": 64}, checkpoint={"every_steps": 4})
    said = "was taken over by elsewhere .process 7., its writer 8; this one, its writer 1, was at epoch 0, phase"
    with pytest.raises(TakenOverError, match=said if world.is_first else "the first worker's message says which"):
        run_worker(config, stop_requested=stop_requested)


def test_all_workers_end_when_the_run_is_taken_over(dataset, tmp_path):
    on_workers(2, partial(check_taken_over, dataset=dataset, folder=tmp_path))
    assert not (tmp_path / "run" / "result.json").exists()
    assert metrics_of(tmp_path / "run") == []


def hang(world, dataset, folder):
    """The last worker leaves in the middle of an epoch; the others say where they waited for it."""

    class Gone(Exception):
        pass

    polls = 0

    def stop_requested():
        nonlocal polls
        polls += 1
        if world.rank == 1 and polls == 5:
            raise Gone
        return False

    denoising.REBUILT_ROWS = 64
    config = small_config(dataset, folder / "run", train={"epochs": 1, "batch_size": 64})
    with pytest.raises((Gone, LostWorkerError)) as error:
        run_worker(config, stop_requested=stop_requested)
    if world.rank == 0:
        assert "worker 0 of 2 lost another at epoch 0, phase 'rebuild', step 2" in str(error.value)


def test_a_lost_worker_is_reported_with_rank_step_and_phase(dataset, tmp_path):
    on_workers(2, partial(hang, dataset=dataset, folder=tmp_path), timeout_s=5)


def check_shared_folder(world, dataset, folder):
    """A worker that sees another folder under the same name; a worker that cannot write there."""
    if world.rank == 1:  # as on a machine of its own
        other = folder / "of worker 1"
        (other / "run").mkdir(parents=True)
        os.chdir(other)
    else:
        os.chdir(folder)
    with pytest.raises(UserError, match="wrote to run cannot be seen" if world.is_first else "another worker"):
        run_worker(small_config(dataset, "run"), stop_requested=lambda: False)
    assert not list(Path("run").glob("mark-*"))
    if world.rank == 1:
        shutil.rmtree("run")
        Path("run").write_text("")
    with pytest.raises(UserError, match="another worker" if world.is_first else "cannot write"):
        run_worker(small_config(dataset, "run"), stop_requested=lambda: False)


def test_a_folder_that_workers_do_not_share_is_refused(dataset, tmp_path):
    on_workers(2, partial(check_shared_folder, dataset=dataset, folder=tmp_path))
