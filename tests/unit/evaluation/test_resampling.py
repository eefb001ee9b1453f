"""Intervals, paired tests and corrections, beside computations by hand and by scipy."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from diffmm_dist.evaluation import resampling
from diffmm_dist.evaluation.resampling import RESAMPLES, holm, mean_intervals, paired


@pytest.fixture
def values():
    return np.random.default_rng(3).random((2, 150)) * np.array([[1.0], [0.1]])


def test_an_interval_is_that_of_resamples(values):
    """Drawn one by one, as a reader would do it."""
    random = np.random.default_rng(0)
    drawn = [random.integers(0, 150, 150) for _ in range(RESAMPLES)]
    for row, found in zip(values, mean_intervals(values), strict=True):
        means = [row[places].mean() for places in drawn]
        assert found == pytest.approx((row.mean(), *np.quantile(means, [0.025, 0.975])))


def test_an_interval_of_very_many_users_is_the_normal_one(values, monkeypatch):
    by_resampling = mean_intervals(values)
    monkeypatch.setattr(resampling, "LARGEST_RESAMPLED", 100)
    for one, other in zip(by_resampling, mean_intervals(values), strict=True):
        assert one.mean == other.mean
        assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.05)


def test_one_user_has_an_interval_without_width():
    assert mean_intervals(np.array([[0.25]])) == [(0.25, 0.25, 0.25)]


def test_a_paired_test_is_that_of_scipy(values):
    differences = values - values[:, ::-1] + 0.01
    for row, found in zip(differences, paired(differences), strict=True):
        assert found.p == pytest.approx(wilcoxon(row, zero_method="zsplit").pvalue)
        assert found.low < found.difference < found.high
    assert paired(np.zeros((1, 20))) == [(0, 0, 0, 1)]


@pytest.mark.parametrize(("ps", "expected"), [
    ([], []),
    ([0.04], [0.04]),
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # as R's p.adjust(method="holm")
    ([0.5, 0.6, 0.7], [1, 1, 1]),
    ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
])  # fmt: skip
def test_holm(ps, expected):
    assert holm(ps) == pytest.approx(expected)
