"""Facts of a dataset as a worker has them; on several workers in tests/distributed."""

import pytest
import torch

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.knowledge import shard_knowledge, summary
from diffmm_dist.data.training import shard_of
from diffmm_dist.errors import UserError
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.shard import AllRows, joined
from diffmm_dist.parallel.world import World
from diffmm_dist.preparation.partitioning import partition_dataset
from tests.support.builders import synthetic_dataset, write_config
from tests.support.optional import metis_or_skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", knowledge=True)


def whole(path):
    dataset = Dataset.open(path)
    return shard_knowledge(dataset, shard_of(dataset, World.single()))


def triples(knowledge, facts):
    heads = knowledge.own_ids[facts.pairs.row_ids]
    return torch.stack([heads, facts.relations, facts.pairs.indices], dim=1)


def test_every_fact_counts_both_ways_and_each_pair_once(path):
    knowledge = whole(path)
    expected = {}
    for columns in Dataset.open(path).stream_table("knowledge"):
        for head, relation, tail in zip(*(column.tolist() for column in columns), strict=True):
            for pair, kind in (((head, tail), relation), ((tail, head), relation + knowledge.num_relations)):
                expected[pair] = min(kind, expected.get(pair, kind))
    found = {(head, tail): relation for head, relation, tail in triples(knowledge, knowledge.facts).tolist()}
    assert found == expected


@pytest.mark.parametrize("method", ["metis", "random"])
def test_a_partition_changes_the_order_alone(path, tmp_path, method):
    if method == "metis":
        metis_or_skip()
    partition_dataset(path, str(tmp_path / "p"), num_parts=3, method=method, seed=2)
    before, after = whole(path), whole(str(tmp_path / "p"))
    first, second = (triples(knowledge, knowledge.facts).unique(dim=0) for knowledge in (before, after))
    assert torch.equal(first, second)
    names = [Dataset.open(place).original_ids("relations").to_pylist() for place in (path, str(tmp_path / "p"))]
    assert names[0] == names[1]  # relations are not cut: their order says which of two counts
    report = Dataset.open(str(tmp_path / "p")).manifest.partition.report
    assert report["random"]["cut_links_share"] > 0.5
    if method == "metis":
        assert report["metis"]["cut_links_share"] < report["random"]["cut_links_share"]


def test_capped_heads_keep_a_draw_of_their_own(path):
    knowledge = whole(path)
    stream = RandomStream.of(1)
    kept = knowledge.capped(2, stream)
    counts = knowledge.facts.pairs.row_counts
    assert torch.equal(kept.pairs.row_counts, counts.clamp(max=2))
    assert int((counts > 2).sum()) > 5
    assert torch.equal(knowledge.facts.relation_of(kept.pairs.row_ids, kept.pairs.indices), kept.relations)
    other = knowledge.capped(2, RandomStream.of(2))
    assert not torch.equal(other.pairs.indices, kept.pairs.indices)
    assert knowledge.capped(None, stream) is knowledge.facts


def test_relations_of_pairs_that_are_none(path):
    knowledge = whole(path)
    heads, tails = torch.arange(3), torch.arange(3)  # no node has a fact with itself here
    assert knowledge.facts.relation_of(heads, tails).tolist() == [-1, -1, -1]


def test_a_dataset_without_facts_is_one_sentence(tmp_path):
    plain = synthetic_dataset(tmp_path / "d")
    with pytest.raises(UserError, match=r"holds no knowledge graph; prepare it with kg.txt"):
        summary(Dataset.open(plain))


def test_a_model_that_needs_facts_leaves_no_run_folder_without_them(run_cli, tmp_path):
    plain = synthetic_dataset(tmp_path / "d")
    config = write_config(
        tmp_path / "c.yaml", data={"path": plain}, run={"path": str(tmp_path / "run")}, model={"name": "diffkg"}
    )
    status, _, err = run_cli("train", config)
    assert status == 1
    assert "holds no knowledge graph, which model.name=diffkg needs" in err
    assert not (tmp_path / "run").exists()


def test_joined_axes_have_the_first_one_s_rows_first():
    items = AllRows(Ownership((0, 2, 3), 1), torch.tensor([2, 0, 1]))
    others = AllRows(Ownership((0, 0, 2), 1), torch.tensor([1, 0]))
    nodes = joined([items, others])
    assert nodes.ownership == Ownership((0, 2, 5), 1)
    assert nodes.ids.tolist() == [2, 0, 1, 4, 3]
    assert nodes.own.ids.tolist() == [1, 4, 3]
    assert nodes.rows.tolist() == [1, 2, 0, 4, 3]


def test_inspect_shows_the_facts(run_cli, path):
    status, out, err = run_cli("inspect", path)
    assert status == 0, err
    found = summary(Dataset.open(path))
    for text in (
        "entities",
        f"{found.num_facts:,}",
        f"{found.items_with_facts:,} items have some",
        found.busiest[0][0],
    ):
        assert text in out
