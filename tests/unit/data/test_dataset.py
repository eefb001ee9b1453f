import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from diffmm_dist.data import schema
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.writer import dataset_writer
from diffmm_dist.errors import UserError
from diffmm_dist.parallel.ranges import Range
from tests.support.builders import synthetic_dataset
from tests.support.damage import forge
from tests.support.reference import dense


@pytest.fixture
def path(tmp_path):
    return synthetic_dataset(tmp_path / "data")


def part(path, name):
    (file,) = Path(path).glob(name)
    return file


def write(out, users=(0, 1), items=(0, 1), features=None, num_items=2, **options):
    with dataset_writer(str(out), num_users=2, num_items=num_items, **options) as writer:
        writer.add_interactions("train", np.array(users, dtype=np.int64), np.array(items, dtype=np.int64))
        if features is not None:
            writer.add_features("visual", np.asarray(features, dtype=np.float32))
        writer.add_ids("users", pa.array(["a", "b"]))
        writer.add_ids("items", pa.array(range(num_items)))


def test_round_trip(tmp_path):
    out = tmp_path / "data"
    features = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    write(out, users=[0, 0, 1], items=[1, 0, 1], features=features)
    dataset = Dataset.open(str(out))
    dataset.verify()
    assert dense(dataset.interactions("train")).tolist() == [[1, 1], [0, 1]]
    assert dataset.interactions("test").num_entries == 0
    assert dataset.features("visual").tolist() == features.tolist()
    assert dataset.original_ids("users").to_pylist() == ["a", "b"]
    assert dataset.original_ids("items").to_pylist() == [0, 1]


@pytest.mark.parametrize("users", [Range(0, 60), Range(10, 11), Range(59, 60), Range(5, 5)])
def test_a_range_of_users_is_a_slice(path, users):
    dataset = Dataset.open(path)
    whole = dense(dataset.interactions("train"))
    assert torch.equal(dense(dataset.interactions("train", users)), whole[users.start : users.stop])


@pytest.mark.parametrize("items", [Range(0, 40), Range(3, 9), Range(40, 40)])
def test_a_range_of_items_is_a_slice(path, items):
    dataset = Dataset.open(path)
    whole = dataset.features("textual")
    assert torch.equal(dataset.features("textual", items), whole[items.start : items.stop])


def test_many_record_batches(tmp_path, monkeypatch):
    whole = Dataset.open(synthetic_dataset(tmp_path / "one"))
    monkeypatch.setattr(schema, "ROWS_PER_BATCH", 7)
    cut = Dataset.open(synthetic_dataset(tmp_path / "many"))
    assert torch.equal(cut.interactions("train").keys, whole.interactions("train").keys)
    assert torch.equal(cut.features("visual", Range(5, 23)), whole.features("visual")[5:23])


def test_the_fingerprint_is_of_the_contents(tmp_path):
    first, again = (Dataset.open(synthetic_dataset(tmp_path / name)) for name in ("a", "b"))
    other = Dataset.open(synthetic_dataset(tmp_path / "c", seed=2))
    assert first.manifest.fingerprint == again.manifest.fingerprint != other.manifest.fingerprint


def test_it_is_refused_where_something_is(tmp_path, path):
    with pytest.raises(UserError, match="--force"):
        write(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        write(tmp_path / "other", force=True)
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_force_replaces_only_when_the_new_one_is_complete(path, tmp_path):
    old = Dataset.open(path).manifest.fingerprint
    with pytest.raises(UserError, match="NaN"):
        write(path, features=[[1.0], [np.nan]], force=True)
    assert Dataset.open(path).manifest.fingerprint == old
    write(path, force=True)
    assert Dataset.open(path).num_users == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_what_is_interrupted_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        dataset_writer(str(tmp_path / "data"), num_users=1, num_items=1) as writer,
    ):
        writer.add_interactions("train", np.array([0]), np.array([0]))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": [[1.0], [np.nan]]}, r"modality 'visual'.*item row 1 hold NaN"),
        ({"features": [[-np.inf], [0.0]]}, r"modality 'visual'.*item row 0 hold infinity"),
        ({"features": [[1.0]]}, r"modality 'visual' has 1 feature rows but there are 2 items"),
        ({"users": [0, 2]}, r"train interactions: user id 2 in row 1 is out of range; there are 2 users"),
        ({"items": [-1, 0]}, r"item id -1 in row 0 is out of range"),
    ],
)
def test_bad_data_are_not_written(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "data", **arguments)
    assert list(tmp_path.iterdir()) == []


def damage(path, name, change):
    file = part(path, name)
    file.write_bytes(change(file.read_bytes()))
    return file


TRAIN = "interactions/split=train/part-*.arrow"


@pytest.mark.parametrize(
    "change",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PK\x03\x04" + data, lambda data: data[8:]],
    ids=["truncated", "empty", "foreign", "no magic"],
)
def test_a_damaged_file_is_named(path, change):
    file = damage(path, TRAIN, change)
    with pytest.raises(UserError, match=r"part-00000\.arrow is truncated or not an Arrow file"):
        Dataset.open(path).interactions("train")
    with pytest.raises(UserError, match=str(file.relative_to(path))):
        Dataset.open(path).verify()


def test_a_missing_file_is_named(path):
    part(path, TRAIN).unlink()
    with pytest.raises(UserError, match=r"split=train/part-00000\.arrow: it does not exist"):
        Dataset.open(path).interactions("train")


def replace_table(path, name, table):
    with pa.OSFile(str(part(path, name)), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def interactions_table(users, items):
    return pa.table({"user": users, "item": items}, schema=schema.INTERACTIONS)


def test_another_schema_length_or_id_is_named(path):
    rows = Dataset.open(path).manifest.num_interactions("train")
    replace_table(path, TRAIN, pa.table({"uid": [1]}))
    with pytest.raises(UserError, match=r"has columns \(uid: int64\) where \(user: int64, item: int64\) are expected"):
        Dataset.open(path).interactions("train")
    replace_table(path, TRAIN, interactions_table([0], [0]))
    with pytest.raises(UserError, match=rf"holds 1 rows but manifest.json says {rows}"):
        Dataset.open(path).interactions("train")
    replace_table(path, TRAIN, interactions_table([0] * (rows - 1) + [60], [0] * rows))
    forge(path, schema.MANIFEST)
    with pytest.raises(UserError, match=rf"user id 60 in row {rows - 1} is out of range; there are 60 users"):
        Dataset.open(path).interactions("train")


def test_features_on_disk_are_checked_too(path):
    values = np.zeros((40, 6), dtype=np.float32)
    values[17, 2] = np.inf
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6)
    field = pa.field("features", pa.list_(pa.float32(), 6), nullable=False)
    replace_table(path, "items/modality=visual/part-*.arrow", pa.table([column], schema=pa.schema([field])))
    forge(path, schema.MANIFEST)
    with pytest.raises(UserError, match="modality 'visual'.*item 'item_17' \\(row 17\\) hold infinity"):
        Dataset.open(path).features("visual")


def test_an_unknown_modality_is_named_with_the_nearest(path):
    with pytest.raises(UserError, match="did you mean 'visual'.*it has visual, textual"):
        Dataset.open(path).features("visul")


def test_no_dataset_and_half_a_dataset(tmp_path, path):
    with pytest.raises(UserError, match="does not exist; make one with `prepare`"):
        Dataset.open(str(tmp_path / "nothing"))
    part(path, "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json, so it is not a complete dataset"):
        Dataset.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: "not json {", "is not valid JSON"),
        (lambda m: "[]", "is not a manifest of diffmm_dist"),
        (lambda m: json.dumps(m | {"version": 99}), "format version 99"),
        (lambda m: json.dumps(m | {"num_users": -1}), "damaged at 'num_users'"),
        (lambda m: json.dumps(m).replace("interactions/split", "../../etc/split"), "damaged at 'interactions"),
    ],
    ids=["no json", "foreign", "version", "value", "path outside"],
)
def test_a_bad_manifest(path, change, message):
    file = part(path, "manifest.json")
    file.write_text(change(json.loads(file.read_text())))
    with pytest.raises(UserError, match=message):
        Dataset.open(path)


@pytest.mark.parametrize(("width", "dtype", "rows"), [(4, "float32", 65_536), (64, "float32", 16_384),
                                                      (64, "float16", 32_768), (4096, "float32", 256),
                                                      (1 << 22, "float32", 1)])  # fmt: skip
def test_wide_features_come_in_short_batches(width, dtype, rows):
    assert schema.rows_per_batch(schema.feature_schema(width, dtype)) == rows
    assert schema.rows_per_batch(schema.INTERACTIONS) == 65_536
