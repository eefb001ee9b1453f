"""A teacher is read from a run or a bundle of any model, or refused by a sentence."""

import gc
import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from diffmm_dist.bundles import files as bundle_files
from diffmm_dist.bundles.bundle import read_bundle
from diffmm_dist.bundles.files import MARKER
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import shard_of
from diffmm_dist.errors import UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.models.registry import FOLDERS
from diffmm_dist.parallel.world import World
from diffmm_dist.preparation.partitioning import partition_dataset
from diffmm_dist.runs.run_folder import RunFolder
from diffmm_dist.training import teacher, trained, worker
from diffmm_dist.training.build import model_entry
from diffmm_dist.training.teacher import load_teacher, teacher_of
from diffmm_dist.training.trained import load_trained
from tests.contracts.toy.training import config_of, register, stopped
from tests.support import damage
from tests.support.builders import small_config, synthetic_dataset, train_alone

MODELS = ["lightgcn", "popularity", "diffmm", "diffkg"]
SECTIONS = {"train": {"epochs": 1}, "monitoring": {"tensorboard": False}}


def run_of(dataset, run, model, **sections):
    train_alone(small_config(dataset, run, model={"name": model}, **(SECTIONS | sections)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", knowledge=True)


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """A run of each model, and what it exports."""
    folder = tmp_path_factory.mktemp("runs")
    for model in MODELS:
        run_of(dataset, folder / model, model)
        export_bundle(load_trained(str(folder / model)), str(folder / f"{model}-bundle"))
    return folder


@pytest.fixture
def run(runs, tmp_path):
    return shutil.copytree(runs / "lightgcn", tmp_path / "run")


@pytest.fixture
def bundle(runs, tmp_path):
    return shutil.copytree(runs / "lightgcn-bundle", tmp_path / "bundle")


def load(address, dataset, student="student"):
    dataset = Dataset.open(str(dataset))
    return load_teacher(str(address), dataset, shard_of(dataset, World.single()), student=str(student))


@pytest.mark.parametrize("model", MODELS)
def test_a_run_and_its_bundle_have_the_rows_that_are_evaluated(runs, dataset, model):
    expected = load_trained(str(runs / model))
    of_run, of_bundle = load(runs / model, dataset), load(runs / f"{model}-bundle", dataset)
    for rows, exported, known in zip(
        (of_run.users, of_run.items), (of_bundle.users, of_bundle.items), expected.model.embeddings(), strict=True
    ):
        assert torch.equal(rows, known)
        assert torch.equal(exported, known)
        assert rows.dtype == exported.dtype == torch.float32
        assert not rows.requires_grad
    marker = bundle_files.read_marker(str(runs / f"{model}-bundle"))
    assert of_run.identity == f"run {RunFolder(str(runs / model)).run}, epoch {expected.best_epoch}"
    assert of_bundle.identity == f"bundle {marker['files']['users.arrow']}, {marker['files']['items.arrow']}"
    assert of_run.name == f"{model} of {runs / model}"
    assert of_bundle.name == f"{model} of {runs / model}-bundle"


def test_of_a_teacher_its_tables_alone_are_kept(runs, dataset, monkeypatch):
    build, seen = trained.build_recipe, []

    def watched(*arguments, **options):
        assert options.get("teacher") is None  # a teacher that was a student itself needs no teacher any more
        recipe = build(*arguments, **options)
        seen.extend(weakref.ref(part) for part in (recipe.model, arguments[1]))
        return recipe

    monkeypatch.setattr(trained, "build_recipe", watched)
    tables = load(runs / "diffmm", dataset)
    gc.collect()
    assert [part() for part in seen] == [None, None]
    assert tables.users.untyped_storage().nbytes() == tables.users.nbytes


def test_a_phases_precision_does_not_reach_it(runs, dataset):
    expected = load(runs / "diffmm", dataset)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(load(runs / "diffmm", dataset).items, expected.items)
    finally:
        torch.set_float32_matmul_precision(before)


def test_rows_of_a_partitioned_dataset_are_found_by_their_ids(dataset, tmp_path):
    parted = str(tmp_path / "parted")
    partition_dataset(dataset, parted, num_parts=4, method="random", seed=1)
    run_of(parted, tmp_path / "run", "lightgcn")
    export_bundle(load_trained(str(tmp_path / "run")), str(tmp_path / "bundle"))
    shard = shard_of(Dataset.open(parted), World.single())
    assert not torch.equal(shard.user_ids, torch.arange(60))
    by_id = read_bundle(str(tmp_path / "bundle"))
    for address in (tmp_path / "run", tmp_path / "bundle"):
        found = load(address, parted)
        assert torch.equal(found.users, torch.from_numpy(by_id.user_rows.take(shard.user_ids.numpy())))
        assert torch.equal(found.items, torch.from_numpy(by_id.item_rows.take(shard.own_item_ids.numpy())))


@pytest.mark.parametrize("wanted", [[], [41], [40, 3, 12, 0, 59, 31, 30, 29], list(range(60))])
def test_a_bundle_is_read_a_record_batch_at_a_time(runs, tmp_path, wanted, monkeypatch):
    monkeypatch.setattr(bundle_files, "ROWS_PER_BATCH", 10)
    address = str(tmp_path / "bundle")
    export_bundle(load_trained(str(runs / "lightgcn")), address)
    marker = bundle_files.read_marker(address)
    ids = torch.tensor(wanted, dtype=torch.int64)
    found = bundle_files.read_embeddings(address, "users.arrow", marker, 60, ids.numpy())
    assert np.array_equal(found, read_bundle(address).user_rows.take(ids.numpy()))


def test_the_recipe_gets_it_to_call_when_it_needs_it(runs, dataset, tmp_path, monkeypatch):
    address, given = str(runs / "diffmm-bundle"), []
    build = worker.build_recipe

    def watched(*arguments, **options):
        given.append(options["teacher"])
        return build(*arguments, **options)

    monkeypatch.setattr(worker, "build_recipe", watched)
    run_of(dataset, tmp_path / "without", "lightgcn")
    monkeypatch.setattr(teacher, "model_entry", lambda config: replace(model_entry(config), teacher=lambda _: address))
    run_of(dataset, tmp_path / "with", "lightgcn")
    assert given[0] is None
    assert torch.equal(given[1]().items, load(address, dataset).items)
    with pytest.raises(UserError, match="the student's own run folder"):
        config = small_config(dataset, address)
        teacher_of(config, Dataset.open(dataset), shard_of(Dataset.open(dataset), World.single()))()


def test_no_teacher_is_there(dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(UserError, match=rf"{name} is neither a run folder \(.*\) nor a bundle \(.*\); set model\."):
            load(tmp_path / name, dataset)


def test_a_run_is_not_its_own_teacher(run, dataset, tmp_path):
    (tmp_path / "link").symlink_to(run)
    for address in (run, f"{run}/", tmp_path / "link", tmp_path / "." / "x" / ".." / "run"):
        with pytest.raises(UserError, match="is the student's own run folder; set model.teacher to another run"):
            load(address, dataset, student=run)


def test_a_run_that_has_not_come_far_enough(tmp_path, monkeypatch):
    monkeypatch.setitem(FOLDERS, "toy", "tests.contracts.toy")
    register()
    data = synthetic_dataset(tmp_path / "data")
    said = []
    for polls in range(2, 40, 3):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        if stopped(config_of(data, tmp_path / "run", checkpoint={"every_epochs": 1}), polls) is None:
            break
        with pytest.raises(UserError) as error:
            load(tmp_path / "run", data)
        said.append(str(error.value))
        if "last stage" in said[-1]:
            break
    assert f"run {tmp_path}/run has not evaluated an epoch yet; let `train` go on until it has" in said
    assert "has not come to its last stage, 'student', of which the best epoch is wanted" in said[-1]


@pytest.mark.parametrize("name", ["lightgcn", "lightgcn-bundle"])
def test_a_teacher_of_another_dataset(runs, dataset, tmp_path, name):
    other = synthetic_dataset(tmp_path / "other", knowledge=True, seed=2)
    theirs, own = (Dataset.open(path).manifest.fingerprint for path in (dataset, other))
    with pytest.raises(UserError) as error:
        load(runs / name, other)
    assert str(error.value) == (
        f"teacher {runs / name} was trained on a dataset of fingerprint {theirs} but dataset {other} has {own}; train "
        "the teacher on the student's dataset, or set data.path to the teacher's"
    )


@pytest.mark.parametrize(("sizes", "said"), [({"users": 61}, "60 users but .* has 61"), ({"items": 39}, "40 items")])
def test_a_bundle_with_other_numbers_of_rows(runs, tmp_path, sizes, said):
    other = synthetic_dataset(tmp_path / "other", **sizes)
    with pytest.raises(UserError, match=f"teacher .* has {said}.*; train the teacher on the student's dataset"):
        load(runs / "lightgcn-bundle", other)


@pytest.mark.parametrize("kind", [0, 1])
def test_embeddings_of_a_run_that_are_not_finite(runs, dataset, monkeypatch, kind):
    model = type(load_trained(str(runs / "lightgcn")).model)
    embeddings = model.embeddings

    def wrong(self):
        tables = [rows.clone() for rows in embeddings(self)]
        tables[kind][7, 2] = torch.inf
        return tuple(tables)

    monkeypatch.setattr(model, "embeddings", wrong)
    with pytest.raises(UserError, match=rf"lightgcn of .*: the embedding of {['user', 'item'][kind]} 7 holds infinity"):
        load(runs / "lightgcn", dataset)


@pytest.mark.parametrize("name", ["users.arrow", "items.arrow"])
def test_embeddings_of_a_bundle_that_are_not_finite(bundle, dataset, name):
    table = damage.read_table(bundle / name)
    column = table.column("embedding").combine_chunks()
    values = column.flatten().to_numpy().copy()
    values[3 * column.type.list_size] = np.nan
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values), column.type.list_size)
    damage.write_table(bundle / name, pa.table({"id": table.column("id"), "embedding": rows}))
    damage.forge(bundle, MARKER)
    with pytest.raises(UserError, match=f"bundle: the embedding of {name[:4]} 3 holds NaN"):
        load(bundle, dataset)


def test_a_damaged_checkpoint(run, dataset):
    (checkpoint,) = (run / "checkpoints").iterdir()
    chunk = json.loads((checkpoint / "index.json").read_text())["tensors"]["model/item_embedding"]["chunks"][0]
    damage.flip(checkpoint / chunk["file"], chunk["start"] + chunk["length"] // 2)
    with pytest.raises(UserError, match="checkpoints/epoch-00001"):
        load(run, dataset)


@pytest.mark.parametrize("change", damage.WHOLE)
@pytest.mark.parametrize("name", ["users.arrow", "items.arrow", MARKER])
def test_a_damaged_bundle(bundle, dataset, name, change):
    damage.WHOLE[change](bundle / name)
    with pytest.raises(UserError, match=name):
        load(bundle, dataset)


def test_other_rows_in_a_bundle(bundle, dataset):
    damage.rotate_rows(bundle / "users.arrow")
    with pytest.raises(UserError, match=r"users\.arrow is damaged: its checksum is not the one in bundle\.json"):
        load(bundle, dataset)


def test_a_bundle_of_an_unknown_version(bundle, dataset):
    damage.reseal(bundle / MARKER, version=3)
    with pytest.raises(UserError, match=r"bundle\.json is not a bundle of this version of diffmm_dist; export the run"):
        load(bundle, dataset)


def student_of(address, dataset, run, **sections):
    model = {"name": "promptmm", "teacher": str(address), "student": {"embedding_dim": 4, "num_layers": 0}}
    return small_config(dataset, run, model=model, **(SECTIONS | sections))


def test_a_wrong_teacher_is_said_before_there_is_a_run_folder(runs, dataset, tmp_path):
    other = synthetic_dataset(tmp_path / "other", users=50, items=30, interactions=600)
    for address, data, sentence in (
        (tmp_path / "typo", dataset, "is neither a run folder"),
        (runs / "lightgcn", other, "was trained on a dataset of fingerprint"),
        (runs / "lightgcn-bundle", other, "but dataset"),
    ):
        with pytest.raises(UserError, match=sentence):
            train_alone(student_of(address, data, tmp_path / "run"))
        assert not (tmp_path / "run").exists()
    assert train_alone(student_of(runs / "lightgcn", dataset, tmp_path / "run"))["epochs"] == 1


def test_a_teacher_that_goes_on_is_warned_of(run, dataset, tmp_path, caplog):
    (run / "result.json").unlink()
    train_alone(student_of(run, dataset, tmp_path / "student"))
    assert f"teacher {run} has not finished; if a later epoch of it becomes its best one" in caplog.text


def test_a_finished_student_needs_its_teacher_no_more(run, dataset, tmp_path):
    config = student_of(run, dataset, tmp_path / "student")
    result = train_alone(config)
    run.rename(tmp_path / "moved")
    assert train_alone(config) == result
    with pytest.raises(UserError, match="neither a run folder"):
        train_alone(student_of(run, dataset, tmp_path / "student", train={"epochs": 2}))
    moved = student_of(tmp_path / "moved", dataset, tmp_path / "student", train={"epochs": 2})
    assert train_alone(moved)["epochs"] == 2
