"""The map from features to embeddings, beside the sums and the least-squares fit that its formula says."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist import storage
from diffmm_dist.bundles.content import CONTENT, ContentMap, Modality, content_table, read_content, unit
from diffmm_dist.bundles.files import MARKER, read_marker, write_table
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.exports import content
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.exports.content import content_tables, learned_content
from diffmm_dist.preparation.partitioning import partition_dataset
from diffmm_dist.training.trained import load_trained
from tests.support import damage
from tests.support.builders import small_config, synthetic_dataset, train_alone
from tests.support.bundles import pairs_of, random_array, random_pairs

USERS, ITEMS, WIDTH = 50, 30, 4


class Blocks:
    """Features in blocks, as of a dataset."""

    def __init__(self, features, size=7):
        self.names, self._features, self._size = list(features), features, size

    def __iter__(self):
        for start in range(0, ITEMS, self._size):
            rows = slice(start, min(start + self._size, ITEMS))
            yield rows, {name: values[rows] for name, values in self._features.items()}


def plain(features, users, items, seen):
    """Embeddings of the items themselves by the formula of the docstring, item by item."""

    def unit(rows):
        return np.array([row / (np.linalg.norm(row) or 1) for row in rows.astype(np.float64)])

    parts = []
    for values in features.values():
        centred = unit(values) - unit(values).mean(axis=0)
        parts.append(centred / np.sqrt((centred**2).mean()))
    f = unit(np.concatenate(parts, axis=1))
    weight = np.sqrt(np.bincount(seen.items, minlength=len(items)))[:, None]
    centred = [rows - (weight * rows).sum(axis=0) / weight.sum() for rows in (f, items)]
    ridge = content._RIDGE * (weight * centred[0] ** 2).sum() / f.shape[1]
    stacked = np.concatenate([np.sqrt(weight) * centred[0], np.sqrt(ridge) * np.eye(f.shape[1])])
    wanted = np.concatenate([np.sqrt(weight) * centred[1], np.zeros((f.shape[1], items.shape[1]))])
    predicted = f @ np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    pairs = seen.items  # an item counts as often as users know it
    mean, centre = items[pairs].mean(axis=0), predicted[pairs].mean(axis=0)
    spread = [np.mean(((rows[pairs] - middle) @ users.T) ** 2) for rows, middle in ((items, mean), (predicted, centre))]
    return mean + np.sqrt(spread[0] / spread[1]) * (predicted - centre)


@pytest.mark.parametrize("size", [7, 30])
def test_it_is_the_formula(size):
    features = {"a": random_array(ITEMS, 6, 1), "b": 3 + random_array(ITEMS, 2, 2)}
    users, items, seen = random_array(USERS, WIDTH, 3), random_array(ITEMS, WIDTH, 4), random_pairs(USERS, ITEMS)
    known_by = content._by_item(seen, np.arange(ITEMS))
    found = learned_content(Blocks(features, size), users, items, known_by)
    np.testing.assert_allclose(found.items(features), plain(features, users, items, seen), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "features",
    [{"a": np.ones((ITEMS, 3), np.float32)}, {"a": np.zeros((ITEMS, 3), np.float32)}, {"a": random_array(ITEMS, 1, 1)},
     {"a": np.repeat(random_array(ITEMS, 1, 1), 5, axis=1)}],
    ids=["equal", "zero", "one wide", "repeated"],
)  # fmt: skip
@pytest.mark.parametrize("seen", [random_pairs(USERS, ITEMS), pairs_of([], [], num_rows=USERS, num_items=ITEMS)])
def test_features_that_say_little_give_finite_embeddings(features, seen):
    known_by = content._by_item(seen, np.arange(ITEMS))
    found = learned_content(Blocks(features), random_array(USERS, WIDTH, 3), random_array(ITEMS, WIDTH, 4), known_by)
    assert np.isfinite(found.items(features)).all()


@pytest.mark.parametrize("size", [1, 7, 40, 100])
def test_each_pass_reads_every_row_once_whatever_the_files_blocks(tmp_path, monkeypatch, size):
    dataset = Dataset.open(synthetic_dataset(tmp_path / "d", items=40, modalities={"a": 3, "b": 5}))
    monkeypatch.setattr(content, "_ITEMS_PER_BLOCK", size)
    read, batches = [], Dataset._batches

    def counted(self, *arguments, **options):
        for batch in batches(self, *arguments, **options):
            read.append(batch.rows.num_rows)
            yield batch

    monkeypatch.setattr(Dataset, "_batches", counted)
    blocks = list(content._Blocks(dataset))
    assert sum(read) == 2 * 40
    assert [rows.stop - rows.start for rows, _ in blocks[:-1]] == [size] * (len(blocks) - 1)
    for name in ("a", "b"):
        together = np.concatenate([features[name] for _, features in blocks])
        assert np.array_equal(together, dataset.features(name).numpy())


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_length_of_features_does_not_matter(factor):
    rows = random_array(5, 3)
    np.testing.assert_allclose(unit(rows * np.float32(factor)), unit(rows), rtol=1e-5)


def test_what_is_written_is_what_is_read(tmp_path):
    found = ContentMap(
        random_array(1, 3)[0],
        {"v": Modality(random_array(1, 5)[0], np.float32(0.5)), "t": Modality(random_array(1, 2)[0], np.float32(2))},
        random_array(3, 7, 9),
    )
    write_table(str(tmp_path / CONTENT), content_table(found))
    marker = {"embedding_dim": 3, "further": {CONTENT: 8}, "files": {CONTENT: storage.sha256(str(tmp_path / CONTENT))}}
    read = read_content(str(tmp_path), marker)
    features = {"t": random_array(4, 2, 1), "v": random_array(4, 5, 2)}
    assert np.array_equal(read.items(features), found.items(features))
    assert read_content(str(tmp_path), {"embedding_dim": 3}) is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of a model that reads no features, on a dataset that has some, and on parts of it."""
    folder = tmp_path_factory.mktemp("runs")
    synthetic_dataset(folder / "whole")
    partition_dataset(str(folder / "whole"), str(folder / "parts"), num_parts=2, method="random", seed=1)
    for name in ("whole", "parts"):
        sections = {"model": {"name": "lightgcn"}, "train": {"epochs": 1}, "monitoring": {"tensorboard": False}}
        train_alone(small_config(folder / name, folder / f"run-{name}", **sections))
        export_bundle(load_trained(str(folder / f"run-{name}")), str(folder / f"bundle-{name}"))
    return folder


def test_a_partition_does_not_change_it(runs):
    tables = [damage.read_table(runs / f"bundle-{name}" / CONTENT) for name in ("whole", "parts")]
    assert tables[0].column("modality").equals(tables[1].column("modality"))
    for name in ("mean", "deviation"):
        np.testing.assert_allclose(*(table.column(name).to_numpy() for table in tables), rtol=1e-4, atol=1e-6)
    weights = [np.array(table.column("weights").to_pylist()) for table in tables]
    np.testing.assert_allclose(*weights, rtol=1e-2, atol=1e-3)


def test_without_features_there_is_none(tmp_path):
    data = synthetic_dataset(tmp_path / "d", modalities={})
    train_alone(small_config(data, tmp_path / "r", model={"name": "popularity"}, monitoring={"tensorboard": False}))
    run = load_trained(str(tmp_path / "r"))
    rows = random_array(60, 1), random_array(40, 1)
    assert content_tables(run.dataset, np.arange(40), *rows, random_pairs(60, 40)) == {}
    export_bundle(run, str(tmp_path / "b"))
    assert read_marker(str(tmp_path / "b"))["version"] == 1  # older programs read it


@pytest.mark.parametrize(
    ("column", "values"),
    [("mean", np.nan), ("deviation", 0.0), ("deviation", np.inf), ("modality", "visual"), ("modality", "")],
)
def test_a_map_that_is_none_is_refused(runs, tmp_path, column, values):
    place = shutil.copytree(runs / "bundle-whole", tmp_path / "b")
    table = damage.read_table(place / CONTENT)
    kind = table.schema.field(column)
    changed = table.column(column).to_pylist()
    changed[0 if column == "modality" and values else -1] = values
    where = table.schema.get_field_index(column)
    damage.write_table(place / CONTENT, table.set_column(where, kind, pa.array(changed, kind.type)))
    damage.forge(place, MARKER)
    with pytest.raises(UserError, match=r"content\.arrow is damaged"):
        read_content(str(place), read_marker(str(place)))
