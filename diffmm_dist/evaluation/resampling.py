"""What chance among the users would give: intervals of means, paired tests, and many of these at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import wilcoxon

RESAMPLES = 10_000
FEWER = 2_000  # where very many intervals are shown; their ends move by some hundredths of their width
LARGEST_RESAMPLED = 50_000  # users; beyond, what resampling tends to is within a thousandth of its width
_AT_ONCE = 1 << 22  # drawn numbers held at a time
_NORMAL = 1.959964  # 97.5 % of a normal distribution lie below
Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A mean over users, and between what it lies in 95 % of resamples of them."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """The mean difference of two systems over the same users.

    Attributes:
        difference: mean of the first's value less the second's.
        low: lower end of what it lies between in 95 % of resamples of the users.
        high: upper end.
        p: of Wilcoxon's signed-rank test, 1 where no user differs.
    """

    difference: float
    low: float
    high: float
    p: float


def mean_intervals(values: Floats, *, resamples: int = RESAMPLES) -> list[Interval]:
    """Return the interval of the mean of each row, from the same resamples of the columns, which are users.

    Of more users than ``LARGEST_RESAMPLED`` it is the normal one, to which that of resamples tends.

    Args:
        values: (rows, users), users being at least one.
        resamples: how many.
    """
    means, count = values.mean(axis=1), values.shape[1]
    if count > LARGEST_RESAMPLED:
        half = _NORMAL * values.std(axis=1) / count**0.5
        low, high = means - half, means + half
    else:
        low, high = np.quantile(_resampled_means(values, resamples), [0.025, 0.975], axis=0)
    return [Interval(*map(float, one)) for one in zip(means, low, high, strict=True)]


def _resampled_means(values: Floats, resamples: int) -> Floats:
    """Return the mean of each row in every resample, (resamples, rows)."""
    random = np.random.default_rng(0)
    count = values.shape[1]
    block = max(1, _AT_ONCE // count)
    found = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = random.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        found.append(times.astype(np.float64) @ values.T / count)
    return np.concatenate(found)


def paired(differences: Floats) -> list[Paired]:
    """Return what the differences of each row say, (rows, users), over the same users."""
    tests = []
    for one, (mean, low, high) in zip(differences, mean_intervals(differences), strict=True):
        p = float(wilcoxon(one, zero_method="zsplit").pvalue) if one.any() else 1.0
        tests.append(Paired(mean, low, high, p))
    return tests


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, by Holm's method: none of them is wrong more often than it says."""
    order = np.argsort(np.asarray(ps), kind="stable")
    corrected = [0.0] * len(ps)
    largest = 0.0
    for place, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[index]))
        corrected[index] = largest
    return corrected
