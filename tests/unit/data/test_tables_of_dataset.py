"""Datasets of version 2: further axes and tables, such as a knowledge graph, whole and in parts."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.training import shard_of
from diffmm_dist.data.writer import dataset_writer
from diffmm_dist.errors import UserError
from diffmm_dist.parallel.ranges import Range
from diffmm_dist.parallel.world import World
from diffmm_dist.preparation.partitioning import partition_dataset
from tests.support.builders import synthetic_dataset

NUM_USERS, NUM_ITEMS, NUM_ENTITIES, NUM_RELATIONS, NUM_TRIPLES = 30, 20, 25, 3, 200
NODES = ("items", "entities")
COLUMNS = {"head": NODES, "relation": ("relations",), "tail": NODES}
NAMES = {
    "users": [f"u{n}" for n in range(NUM_USERS)], "items": [f"i{n}" for n in range(NUM_ITEMS)],
    "entities": [f"e{n}" for n in range(NUM_ENTITIES)], "relations": ["made by", "part of", "like"],
}  # fmt: skip


def triples():
    random = np.random.default_rng(4)
    heads, tails = (random.integers(0, NUM_ITEMS + NUM_ENTITIES, NUM_TRIPLES) for _ in range(2))
    return np.sort(heads), random.integers(0, NUM_RELATIONS, NUM_TRIPLES), tails


def pairs():
    cells = np.sort(np.random.default_rng(5).permutation(NUM_USERS * NUM_ITEMS)[:150])
    return cells // NUM_ITEMS, cells % NUM_ITEMS


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "d")
    axes = {"entities": NUM_ENTITIES, "relations": NUM_RELATIONS}
    with dataset_writer(path, num_users=NUM_USERS, num_items=NUM_ITEMS, axes=axes) as writer:
        users, items = pairs()
        for split, chosen in (("train", slice(0, 110)), ("valid", slice(110, 130)), ("test", slice(130, None))):
            writer.add_interactions(split, users[chosen], items[chosen])
        for axis, names in NAMES.items():
            writer.add_ids(axis, pa.array(names))
        writer.begin_table("knowledge", COLUMNS)
        for start in (0, 90):
            writer.add_rows(
                "knowledge", [column[start : start + 110][: 90 if start == 0 else None] for column in triples()]
            )
    return path


@pytest.fixture(scope="module", params=[2, 4])
def parted(request, source, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("parts") / "d")
    partition_dataset(source, out, num_parts=request.param, method="random", seed=5)
    return out


def named_triples(dataset, parts=None):
    """The triples by the names of what they join, sorted."""
    names = {axis: dataset.original_ids(axis).to_pylist() for axis in dataset.manifest.axes}
    nodes = dataset.original_ids("items").to_pylist() + names["entities"]
    rows = [
        (nodes[head], names["relations"][relation], nodes[tail])
        for columns in dataset.stream_table("knowledge", parts)
        for head, relation, tail in zip(*columns, strict=True)
    ]
    return sorted(rows)


def test_what_was_written_is_read(source):
    dataset = Dataset.open(source)
    dataset.verify()
    columns = [np.concatenate(part) for part in zip(*dataset.stream_table("knowledge"), strict=True)]
    for found, expected in zip(columns, triples(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert dataset.manifest.version == 2
    assert dataset.manifest.counts == {"users": 30, "items": 20, "entities": 25, "relations": 3}
    for axis, names in NAMES.items():
        assert dataset.original_ids(axis).to_pylist() == names
        assert torch.equal(dataset.source_rows(axis), torch.arange(len(names)))


def test_a_partition_takes_the_tables_along(source, parted):
    old, new = Dataset.open(source), Dataset.open(parted)
    new.verify()
    assert named_triples(new) == named_triples(old)
    partition = new.manifest.partition
    assert set(partition.axes) == {"users", "items", "entities"}  # no table lies with relations
    for axis in new.manifest.counts:
        order = new.source_rows(axis)
        assert torch.equal(order.sort().values, torch.arange(len(order)))
        assert new.original_ids(axis).to_pylist() == old.original_ids(axis).take(order.numpy()).to_pylist()
    for split in ("train", "valid", "test"):
        expected = old.interactions(split).dense()[new.source_rows("users")][:, new.source_rows("items")]
        assert torch.equal(new.interactions(split).dense(), expected)


def test_a_part_has_the_rows_whose_first_column_is_its_own(parted):
    dataset = Dataset.open(parted)
    bounds = {axis: dataset.manifest.partition.axes[axis].bounds for axis in NODES}
    for part in range(dataset.manifest.num_parts):
        for heads, _, _ in dataset.stream_table("knowledge", Range(part, part + 1)):
            items = heads[heads < NUM_ITEMS]
            others = heads[heads >= NUM_ITEMS] - NUM_ITEMS
            for rows, edges in ((items, bounds["items"]), (others, bounds["entities"])):
                assert ((rows >= edges[part]) & (rows < edges[part + 1])).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_workers_own_every_row_of_every_axis_once(source, parted, size):
    for path in (source, parted):
        dataset = Dataset.open(path)
        shards = [shard_of(dataset, World(rank, size, torch.device("cpu"))) for rank in range(size)]
        for axis, count in dataset.manifest.counts.items():
            ids = torch.cat([shard.axis(axis).ids for shard in shards])
            assert torch.equal(ids.sort().values, torch.arange(count))


def test_a_dataset_without_tables_is_of_version_1_as_ever(tmp_path):
    synthetic_dataset(tmp_path / "d")
    content = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert content["version"] == 1
    assert not {"axes", "tables"} & set(content)
    partition_dataset(str(tmp_path / "d"), str(tmp_path / "p"), num_parts=2, method="random", seed=1)
    content = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert content["version"] == 1
    assert "further" not in content["partition"]


def test_a_newer_version_is_one_sentence(tmp_path):
    synthetic_dataset(tmp_path / "d")
    content = json.loads((tmp_path / "d" / "manifest.json").read_text())
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(content | {"version": 3}))
    with pytest.raises(UserError, match=r"has format version 3, this program reads versions 1 and 2; prepare .* newer"):
        Dataset.open(str(tmp_path / "d"))


def test_a_table_that_is_not_there_is_one_sentence(source):
    with pytest.raises(UserError, match="has no table 'knowledges'; did you mean 'knowledge'"):
        list(Dataset.open(source).stream_table("knowledges"))


KNOWLEDGE, CUTS = ("tables", "knowledge"), ("partition", "further")
WRONG = {
    "an axis of another name": (*KNOWLEDGE, "columns", "head", ["nodes"], "of an axis nodes that it does not"),
    "no axis": (*KNOWLEDGE, "columns", "head", [], "at 'tables.knowledge.columns.head'"),
    "a part that is not there": (*KNOWLEDGE, "files", 0, "part", 9, "is of a part that it does not have"),
    "a path out of it": (*KNOWLEDGE, "files", 0, "path", "../x", "at 'tables.knowledge.files.0.path'"),
    "fewer rows": ("axes", "entities", "count", 24, "its bounds of entities do not rise from 0 to 24"),
    "the version before": ("version", 1, "says version 1 but holds axes or tables"),
    "parts of an axis that is not there": (*CUTS, "nodes", {"bounds": [0, 1, 1], "order": []}, "an axis nodes"),
    "other parts": (*CUTS, "entities", "bounds", [0, 25], "its parts of users and of entities are not"),
    "bounds that fall": (*CUTS, "entities", "bounds", [0, 26, 25], "its bounds of entities do not rise"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_manifest_that_contradicts_itself_is_one_sentence(source, tmp_path, what):
    *path, key, value, sentence = WRONG[what]
    partition_dataset(source, str(tmp_path / "d"), num_parts=2, method="random", seed=5)
    content = json.loads((tmp_path / "d" / "manifest.json").read_text())
    content.pop("sha256")
    place = content
    for step in path:
        place = place[step]
    place[key] = value
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        Dataset.open(str(tmp_path / "d"))


def test_a_number_out_of_range_is_one_sentence(source, tmp_path):
    with (
        pytest.raises(UserError, match="tail id 45 in row 0 is out of range"),
        dataset_writer(
            str(tmp_path / "d"), num_users=1, num_items=NUM_ITEMS, axes={"entities": NUM_ENTITIES}
        ) as writer,
    ):
        writer.begin_table("knowledge", {"head": NODES, "tail": NODES})
        writer.add_rows("knowledge", [np.array([0, 44]), np.array([45, 0])])
