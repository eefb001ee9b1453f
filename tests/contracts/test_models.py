"""What every model does: train, stop at any step and go on with the same bits, be evaluated, exported, recommended."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from diffmm_dist.bundles.recommender import Recommender
from diffmm_dist.bundles.tables import recommend
from diffmm_dist.errors import StoppedError, UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.models.common import denoising
from diffmm_dist.models.registry import FOLDERS, SETTINGS
from diffmm_dist.records import unsealed
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.worker import run_worker
from tests.support.builders import checkpoint_tensors, metrics_of, small_config, synthetic_dataset

# Name, and overrides that exercise another path through the model.
CASES = {
    "diffmm": {"model": {"name": "diffmm"}},
    "diffmm, modal anchor, other sampling": {
        "model": {
            "name": "diffmm", "modality_projection": "affine", "num_layers": 2,
            "diffusion": {"rebuild_topk": 2, "sampling_steps": 2, "sampling_noise": True,
                          "denoiser_hidden_dims": [8, 4], "edge_keep_prob": 1.0, "input_dropout_prob": 0.0},
        },
    },
    "adagcl": {"model": {"name": "adagcl"}},
    "adagcl as released, contrast stronger": {
        "model": {"name": "adagcl", "mode": "reference", "contrast": {"contrastive_weight": 1.0},
                  "gates": {"initial_temperature": 0.1}},
    },
    "diffkg": {"model": {"name": "diffkg"}},
    "diffkg, two hops, other sampling and choice": {
        "model": {
            "name": "diffkg", "knowledge": {"num_hops": 2, "max_facts": None, "residual_weight": 0},
            "views": {"main": "original", "evaluated": "generated", "with_original": True},
            "diffusion": {"sampling_steps": 2, "candidates": "neighbors", "min_confidence": 0.05, "rebuild_topk": 3,
                          "rows": "items", "loss_weights": "uniform"},
        },
    },
    "diffkg as released": {"model": {"name": "diffkg", "mode": "released"}},
    "diffkg without diffusion": {"model": {"name": "diffkg", "mode": "released", "views": {"main": "original"}}},
    "promptmm": {"model": {"name": "promptmm"}, "train": {"batch_size": 100}},
    "promptmm as released": {"model": {"name": "promptmm", "mode": "release"}, "train": {"batch_size": 400}},
    "promptmm, mm_light as released": {
        "model": {"name": "promptmm", "mode": "release", "student": {"kind": "mm_light"}},
        "train": {"batch_size": 400},
    },
    "promptmm, narrow student, frozen teacher and its lists": {
        "model": {"name": "promptmm", "network": {"readout": "mean", "num_layers": 1},
                  "student": {"embedding_dim": 8, "num_layers": 0},
                  "distillation": {"train_prompt": False, "candidates": "teacher", "views": "final",
                                   "teacher_topk": 20}},
        "train": {"batch_size": 400},
    },
    "lightgcn": {"model": {"name": "lightgcn", "num_layers": 2}},
    "popularity": {"model": {"name": "popularity"}},
    "toy": {"model": {"name": "toy", "refine_epochs": 2}, "train": {"epochs": 3, "batch_size": 320}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """A model of three stages that the tests alone know (tests/contracts/test_stages.py)."""
    monkeypatch.setitem(FOLDERS, "toy", "tests.contracts.toy")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(
        tmp_path_factory.mktemp("data") / "d", users=200, items=60, interactions=2400, knowledge=True
    )


@pytest.fixture(autouse=True)
def several_steps_of_rebuild(monkeypatch):
    monkeypatch.setattr(denoising, "REBUILT_ROWS", 64)


@pytest.fixture(params=CASES)
def sections(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def trained_once():
    """The results and folders of runs that are only read, by case: each is trained by the first test that asks."""
    return {}


@pytest.fixture
def trained_run(request, trained_once, dataset, tmp_path_factory, sections):
    """The result and the folder of a whole run, which stays as it is."""
    case = request.node.callspec.params["sections"]
    if case not in trained_once:
        folder = tmp_path_factory.mktemp("trained") / "run"
        trained_once[case] = train(dataset, folder, sections), folder
    return trained_once[case]


def train(dataset, run, sections, stop_after=None, **more):
    polls = 0

    def stop_requested():
        nonlocal polls
        polls += 1
        return polls == stop_after

    return run_worker(small_config(dataset, run, **{**sections, **more}), stop_requested=stop_requested)


def scores_of(records, split):
    """The figure that picks the best epoch, by epoch; of several stages those of the last one."""
    last = max(record.get("stage", 0) for record in records)
    tags = [(record, tag) for record in records for tag in record if tag.endswith(f"{split}/recall@20")]
    return {record["epoch"]: record[tag] for record, tag in tags if record.get("stage", 0) == last}


def test_there_is_a_case_for_every_model():
    assert set(SETTINGS) == {case["model"]["name"] for case in CASES.values()}


def test_result_and_run_folder(trained_run, sections):
    result, run = trained_run
    assert list(result) == [
        "run", "protocol", "seed", "best_epoch", "epochs", "valid", "test", "seconds_per_epoch", "seconds_per_phase",
        "peak_rss_gib", "notes", "config", *(["stages"] if sections["model"]["name"] in ("toy", "promptmm") else []),
    ]  # fmt: skip
    assert unsealed(json.loads((run / "result.json").read_text())) == result
    names = {f"{name}@{k}" for name in ("recall", "ndcg", "precision", "hit_rate", "mrr", "coverage") for k in (5, 20)}
    for split in ("valid", "test"):
        assert set(result[split]) == names
        assert 0 < result[split]["recall@5"] <= result[split]["recall@20"] <= 1
    records = metrics_of(run)
    scores = scores_of(records, "valid")
    assert result["best_epoch"] == max(scores, key=scores.get)
    assert result["valid"]["recall@20"] == max(scores.values())
    assert result["epochs"] == len(records)
    assert not scores_of(records, "test")  # nobody looks at test before the end


def test_running_again_changes_nothing(trained_run, dataset, sections):
    result, run = trained_run
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix != ".yaml"}
    assert train(dataset, run, sections) == result
    unchanged = {path: path.stat().st_mtime_ns for path in before if path.exists() and path.name != "lock"}
    assert unchanged == {path: time for path, time in before.items() if path.name != "lock"}


def test_stopped_anywhere_it_goes_on_with_the_same_bits(trained_run, dataset, tmp_path, sections):
    if sections["model"]["name"] == "popularity":
        pytest.skip("popularity has no step to stop at")
    whole, run = trained_run
    stops = 0
    while True:  # after one step, then after two more, then after three more, ...
        stops += 1
        try:
            result = train(dataset, tmp_path / "parts", sections, stop_after=stops)
            break
        except StoppedError:
            kept = list((tmp_path / "parts" / "checkpoints").iterdir())
            assert len(kept) <= 2 + len(whole.get("stages", "1"))  # the newest two, and the best of each stage
    assert stops > 3
    assert (result["valid"], result["test"]) == (whole["valid"], whole["test"])
    assert metrics_of(tmp_path / "parts") == metrics_of(run)
    newest = [sorted((folder / "checkpoints").iterdir())[-1] for folder in (run, tmp_path / "parts")]
    assert newest[0].name == newest[1].name
    tensors = [checkpoint_tensors(path) for path in newest]
    assert set(tensors[0]) == set(tensors[1])
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name


def test_more_epochs_go_on_where_it_ended(dataset, tmp_path, sections):
    if sections["model"]["name"] == "popularity":
        pytest.skip("popularity has nothing to train")
    whole = train(dataset, tmp_path / "whole", sections, train={"epochs": 2, "batch_size": 64})
    train(dataset, tmp_path / "parts", sections, train={"epochs": 1, "batch_size": 64})
    if sections["model"]["name"] == "promptmm":  # its student began with the teacher's best of one epoch
        with pytest.raises(UserError, match=r"stage 'teacher' of .* has ended after 1 epochs?.* choose another"):
            train(dataset, tmp_path / "parts", sections, train={"epochs": 2, "batch_size": 64})
        return
    result = train(dataset, tmp_path / "parts", sections, train={"epochs": 2, "batch_size": 64})
    assert (result["test"], result["epochs"]) == (whole["test"], whole["epochs"])
    assert whole["epochs"] == 2 or "stages" in whole


def test_published_protocol_is_stamped(dataset, tmp_path, sections):
    result = train(dataset, tmp_path / "run", sections, eval={"k": [20], "protocol": "published"})
    assert result["protocol"] == "published"
    records = metrics_of(tmp_path / "run")
    scores = scores_of(records, "test")
    assert result["test"]["recall@20"] == max(scores.values())
    assert result["best_epoch"] == max(scores, key=scores.get)
    assert not scores_of(records, "valid")


def test_export_and_recommend_agree_with_the_evaluation(trained_run, tmp_path):
    result, run = trained_run
    trained = load_trained(str(run))
    assert trained.evaluation([5, 20]).measure(trained.model, "test") == result["test"]
    export_bundle(trained, str(tmp_path / "bundle"))
    recommender = Recommender.load(str(tmp_path / "bundle"))
    table = pa.concat_tables(recommend(recommender, np.arange(200), k=20)).to_pylist()
    lists = {}
    for row in table:
        lists.setdefault(row["user"], []).append(row["item"])
        assert row["rank"] == len(lists[row["user"]])
    test, known = (
        {f"user_{u}": {f"item_{i}" for i in m[u].nonzero().flatten().tolist()} for u in range(200)}
        for m in (
            trained.dataset.interactions("test").dense(),
            trained.dataset.interactions("train").dense() + trained.dataset.interactions("valid").dense(),
        )
    )
    assert all(not known[user] & set(items) for user, items in lists.items())
    recalls = [len(test[user] & set(items)) / len(test[user]) for user, items in lists.items()]
    assert sum(recalls) / len(recalls) == pytest.approx(result["test"]["recall@20"])


def test_the_bundle_is_readable_with_pyarrow_alone(trained_run, tmp_path):
    _, run = trained_run
    trained = load_trained(str(run))
    export_bundle(trained, str(tmp_path / "bundle"))
    tables = {}
    for path in Path(tmp_path / "bundle").glob("*.arrow"):
        with pa.memory_map(str(path)) as source:
            tables[path.stem] = pa.ipc.open_file(source).read_all()
    assert tables["users"].column("id").to_pylist()[:2] == ["user_0", "user_1"]
    user_rows, item_rows = trained.model.embeddings()
    assert tables["items"].column("embedding").to_pylist() == item_rows.tolist()
    assert tables["users"].num_rows == user_rows.shape[0]
    settings = dict(zip(*(tables["config"].column(name).to_pylist() for name in ("key", "value")), strict=True))
    assert json.loads(settings["run.seed"]) == 421
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "bundle" / "weights.safetensors")
    for name, tensor in trained.model.deployed().state_dict().items():
        assert torch.equal(weights[name], tensor), name
