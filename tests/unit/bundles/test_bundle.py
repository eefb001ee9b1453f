"""A bundle that is not what was exported is refused by a sentence that names the file."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from diffmm_dist.bundles.bundle import read_bundle
from diffmm_dist.bundles.files import MARKER
from diffmm_dist.errors import UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.training.trained import load_trained
from diffmm_dist.training.worker import run_worker
from tests.support import damage
from tests.support.builders import small_config, synthetic_dataset

READ = ["users.arrow", "items.arrow", "seen.arrow", MARKER]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = small_config(
        synthetic_dataset(folder / "data"), folder / "run", model={"name": "lightgcn"}, train={"epochs": 1},
        monitoring={"tensorboard": False},
    )  # fmt: skip
    run_worker(config, stop_requested=lambda: False, show_progress=False)
    return load_trained(str(folder / "run"))


@pytest.fixture(scope="module")
def intact(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(run, str(path))
    return path


@pytest.fixture
def path(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "bundle")


def content(path):
    bundle = read_bundle(str(path))
    ids = bundle.user_ids.to_pylist(), bundle.item_ids.to_pylist()
    return ids, bundle.user_rows.array().tolist(), bundle.item_rows.array().tolist(), bundle.seen.rows().tolist()


@pytest.mark.parametrize("name", READ)
def test_any_flipped_bit_is_refused_or_changes_nothing(path, intact, name):
    before = content(intact)
    random = np.random.default_rng(1)
    size = (intact / name).stat().st_size
    for place in {0, 9, 20, size - 1, size - 5, size - 11, *random.integers(size, size=30).tolist()}:
        damage.flip(path / name, place, int(random.integers(8)))
        said = damage.refusal(lambda: content(path), before)
        assert name == MARKER if said is None else name in said or MARKER in said
        shutil.copy(intact / name, path / name)


@pytest.mark.parametrize("change", damage.WHOLE)
@pytest.mark.parametrize("name", READ)
def test_a_file_that_was_damaged_as_a_whole(path, name, change):
    damage.WHOLE[change](path / name)
    with pytest.raises(UserError, match=name):
        read_bundle(str(path))


@pytest.mark.parametrize("name", ["users.arrow", "items.arrow", "seen.arrow"])
def test_other_rows_in_an_intact_file(path, name):
    damage.rotate_rows(path / name)
    with pytest.raises(UserError, match=f"{name} is damaged: its checksum is not the one in bundle.json"):
        read_bundle(str(path))


def test_files_that_were_swapped(path):
    damage.swap(path / "users.arrow", path / "items.arrow")
    with pytest.raises(UserError, match=r"users\.arrow"):
        read_bundle(str(path))


@pytest.mark.parametrize("name", ["users.arrow", "items.arrow"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused(path, name, value):
    table = damage.read_table(path / name)
    column = table.column("embedding").combine_chunks()
    values = column.flatten().to_numpy().copy()
    values[3 * column.type.list_size] = value
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values), column.type.list_size)
    damage.write_table(path / name, pa.table({"id": table.column("id"), "embedding": rows}))
    damage.forge(path, MARKER)
    with pytest.raises(UserError, match=f"{name}: the embedding in row 3 holds (NaN|infinity)"):
        read_bundle(str(path))


@pytest.mark.parametrize("kind", [0, 1])
def test_embeddings_that_are_not_finite_are_not_exported(run, tmp_path, monkeypatch, kind):
    embeddings = [rows.clone() for rows in run.model.embeddings()]
    embeddings[kind][2, 1] = torch.nan
    monkeypatch.setattr(type(run.model), "embeddings", lambda self: tuple(embeddings))
    with pytest.raises(UserError, match=r"(users|items) of the run's best epoch 0: the embedding in row 2 holds NaN"):
        export_bundle(run, str(tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"embedding_dim": 9}, "has columns"), ({"num_users": 61}, "holds 60 rows but bundle.json says 61"),
        ({"files": {}}, "has no checksum of users.arrow"), ({"embedding_dim": 2**40}, "damaged at 'embedding_dim'"),
    ],
)  # fmt: skip
def test_a_marker_that_does_not_fit_its_files(path, change, pattern):
    record = json.loads((path / MARKER).read_text()) | change
    del record["sha256"]
    (path / MARKER).write_text(json.dumps(record))
    with pytest.raises(UserError, match=pattern):
        read_bundle(str(path))


@pytest.mark.parametrize("name", ["users.arrow", "items.arrow"])
def test_nulls_and_strings_that_lead_elsewhere(path, name):
    """In files whose checksums were forged."""
    table = damage.read_table(path / name)
    ids = table.column("id").combine_chunks()
    damage.write_table(path / name, table.set_column(0, "id", pa.concat_arrays([ids[1:], pa.nulls(1, ids.type)])))
    damage.forge(path, MARKER)
    with pytest.raises(UserError, match=f"{name} holds nulls in column 'id'"):
        read_bundle(str(path))
    offsets = np.arange(len(ids) + 1, dtype=np.int32)
    offsets[4] = 2**30
    wild = pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"x" * len(ids)))
    damage.write_table(path / name, table.set_column(0, "id", wild))
    damage.forge(path, MARKER)
    with pytest.raises(UserError, match=f"{name} is truncated or not an Arrow file"):
        read_bundle(str(path))
