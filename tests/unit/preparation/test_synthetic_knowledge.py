import numpy as np
import pytest
import torch

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.preparation import synthetic_knowledge
from diffmm_dist.preparation.synthetic import SyntheticSpec, generate
from diffmm_dist.preparation.synthetic_knowledge import KnowledgeSpec


def make(path, entities=60, facts=1500, seed=5, modalities=None):
    modalities = {"visual": 4} if modalities is None else modalities
    generate(SyntheticSpec(200, 240, 4000, modalities, seed, KnowledgeSpec(entities, facts)), str(path))
    dataset = Dataset.open(str(path))
    columns = zip(*dataset.stream_table("knowledge"), strict=True)
    return dataset, np.stack([np.concatenate(column) for column in columns], axis=1)


def test_facts_are_distinct_and_sorted_by_head(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_knowledge, "_HEADS_PER_CHUNK", 50)
    dataset, facts = make(tmp_path / "d")
    assert np.array_equal(facts, np.unique(facts, axis=0))
    assert 1000 < len(facts) <= 1500
    assert dataset.original_ids("relations").to_pylist() == ["shares_visual", "mentions", "part_of"]
    assert len(np.unique(facts[facts[:, 0] < 240, 0])) == 240  # every item has one


def test_the_same_seed_gives_the_same_facts_and_the_same_interactions_as_without(tmp_path):
    first, second, other = (make(tmp_path / str(n), seed=seed)[0] for n, seed in enumerate((1, 1, 2)))
    assert first.manifest.fingerprint == second.manifest.fingerprint != other.manifest.fingerprint
    generate(SyntheticSpec(200, 240, 4000, {"visual": 4}, 1), str(tmp_path / "plain"))
    assert Dataset.open(str(tmp_path / "plain")).manifest.interactions == first.manifest.interactions


def test_relations_carry_the_tastes(tmp_path):
    """Items that share an entity by a relation of taste are liked by the same users, far more than others are."""
    dataset, facts = make(tmp_path / "d", facts=3000)
    liked = dataset.interactions("train").dense()
    together = liked.T @ liked
    together /= together.diagonal().clamp(min=1).sqrt()[:, None] * together.diagonal().clamp(min=1).sqrt()
    together.fill_diagonal_(0)

    def shared(relation):
        pattern = torch.zeros(240, 60)
        chosen = facts[(facts[:, 1] == relation) & (facts[:, 0] < 240)]
        pattern[chosen[:, 0], chosen[:, 2] - 240] = 1
        return ((pattern @ pattern.T) > 0) & ~torch.eye(240, dtype=torch.bool)

    tasteful, mentioned = together[shared(0)].mean(), together[shared(1)].mean()
    assert tasteful > 1.5 * mentioned


@pytest.mark.parametrize("sizes", [(1, 1), (1, 500), (3, 40), (5000, 300)])
def test_extremes(tmp_path, sizes):
    dataset, facts = make(tmp_path / "d", *sizes, modalities={})
    assert dataset.manifest.counts["entities"] == sizes[0]
    assert len(facts) <= sizes[1]
    assert facts[:, [0, 2]].max(initial=0) < 240 + sizes[0]


def test_wrong_sizes_are_told_together(tmp_path):
    with pytest.raises(UserError, match=r"--entities 0 must be.*--facts 0 must be"):
        make(tmp_path / "d", 0, 0)


def test_sizes_need_the_flag(run_cli, tmp_path):
    status, _, err = run_cli("prepare", "synthetic", "--out", tmp_path / "d", "--facts", 5)
    assert (status, "--entities and --facts need --knowledge" in err) == (1, True)
