import numpy as np
import pytest
import torch

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.preparation import synthetic
from diffmm_dist.preparation.synthetic import SyntheticSpec, generate


def make(path, *spec, modalities=None, seed=5):
    generate(SyntheticSpec(*spec, {"visual": 16, "textual": 8} if modalities is None else modalities, seed), str(path))
    return Dataset.open(str(path))


def test_counts_are_exact_and_splits_disjoint(tmp_path):
    dataset = make(tmp_path / "d", 300, 120, 5000)
    splits = {name: dataset.interactions(name) for name in ("train", "valid", "test")}
    keys = torch.cat([split.keys for split in splits.values()])
    assert len(keys) == len(keys.unique()) == 5000
    assert sum(dataset.manifest.num_interactions(name) for name in splits) == 5000
    for split in splits.values():
        assert int(split.row_counts.min()) >= 1  # every user stands in every split
    assert dataset.original_ids("users")[7].as_py() == "user_7"


def test_the_same_seed_gives_the_same_dataset(tmp_path):
    fingerprints = [
        make(tmp_path / str(i), 50, 40, 500, seed=seed).manifest.fingerprint for i, seed in enumerate((1, 1, 2))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize("spec", [(40, 6, 120), (3, 2000, 3000), (200, 10, 1000), (10, 30, 30)])
def test_extremes(tmp_path, spec, monkeypatch):
    monkeypatch.setattr(synthetic, "_INTERACTIONS_PER_CHUNK", 100)
    monkeypatch.setattr(synthetic, "_ROWS_PER_CHUNK", 7)
    dataset = make(tmp_path / "d", *spec, modalities={})
    assert sum(dataset.manifest.num_interactions(name) for name in ("train", "valid", "test")) == spec[2]


def test_popularity_follows_a_power_law(tmp_path):
    counts = make(tmp_path / "d", 3000, 500, 60_000).interactions("train").column_counts.double().sort().values
    # Under a power law popular items stand far above the rest: the first tenth has well over its share.
    assert counts[-50:].sum() / counts.sum() > 0.2
    assert counts[-1] > 5 * counts.median()


def test_features_carry_the_tastes(tmp_path):
    """A user's test items look like that user's training items, in every modality, far more than other items do."""
    dataset = make(tmp_path / "d", 500, 400, 8000)
    train, test = dataset.interactions("train").dense(), dataset.interactions("test").dense()
    for modality in ("visual", "textual"):
        features = torch.nn.functional.normalize(dataset.features(modality), dim=1)
        profiles = torch.nn.functional.normalize(train @ features, dim=1)
        similarity = profiles @ features.T
        liked, others = similarity[test > 0].mean(), similarity[(test + train) == 0].mean()
        spread = similarity[(test + train) == 0].std()
        assert (liked - others) / spread > 0.3
        shuffled = profiles @ features[torch.from_numpy(np.random.default_rng(0).permutation(400))].T
        assert abs(shuffled[test > 0].mean() - shuffled.mean()) / spread < 0.1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ((0, 100, 100), "at least 1 user"),
        ((10, 3, 100), "at least 1 user and 6 items"),
        ((10, 100, 29), "choose between 30"),
        ((10, 100, 501), r"and 500 \(half of all pairs\)"),
    ],
)
def test_impossible_sizes(tmp_path, spec, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path / "d", *spec)
    assert list(tmp_path.iterdir()) == []
