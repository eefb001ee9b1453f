"""Users by how much they did, and items by how many took them: how good the lists are for each group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffmm_dist.evaluation.resampling import FEWER, Interval, mean_intervals

MOST = 6
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bounds = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Groups:
    """Groups by a number of training interactions.

    Attributes:
        bounds: of the number in each group, both inclusive, rising.
        sizes: how many users, or items, are in each.
        truths: how many interactions are to be found in each.
    """

    bounds: Bounds
    sizes: Sequence[int]
    truths: Sequence[int]

    def labels(self) -> list[str]:
        """Return what each group is called, and on a second line its size."""
        names = [f"{low:,}" if low == high else f"{low:,}-{high:,}" for low, high in self.bounds]
        return [f"{name}\n{size:,}" for name, size in zip(names, self.sizes, strict=True)]


def even_bounds(counts: Ints, most: int = MOST) -> list[tuple[int, int]]:
    """Return bounds, both inclusive, between which about equally many of the counts lie; fewer where many are equal."""
    if counts.size == 0:
        return []
    ends = np.unique(np.quantile(counts, np.arange(1, most + 1) / most, method="inverted_cdf")).tolist()
    starts = [int(counts.min()), *(end + 1 for end in ends[:-1])]
    return [(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]


def places(counts: Ints, bounds: Bounds) -> Ints:
    """Return in which group each count is; -1 below the first and beyond the last."""
    found = np.searchsorted([high for _, high in bounds], counts)
    found[(found >= len(bounds)) | (counts < bounds[0][0])] = -1
    return found


def user_groups(activity: Ints, truths: Ints) -> Groups:
    """Return groups of about as many users each.

    Args:
        activity: training interactions of each user, (N,).
        truths: what is to be found of each, (N,).
    """
    bounds = even_bounds(activity)
    of_user = places(activity, bounds)
    inside = [of_user == place for place in range(len(bounds))]
    return Groups(bounds, [int(one.sum()) for one in inside], [int(truths[one].sum()) for one in inside])


def item_groups(taken: Ints, truths: Ints) -> Groups:
    """Return groups of items of about as many interactions that are to be found each.

    Args:
        taken: training interactions of each item, (I,).
        truths: how often each is to be found, (I,).
    """
    bounds = even_bounds(np.repeat(taken, truths))
    if bounds:  # items that are never to be found belong to a group, too
        bounds[0] = (min(bounds[0][0], int(taken.min())), bounds[0][1])
        bounds[-1] = (bounds[-1][0], max(bounds[-1][1], int(taken.max())))
    of_item = places(taken, bounds) if bounds else np.empty(0, np.int64)
    inside = [of_item == place for place in range(len(bounds))]
    return Groups(bounds, [int(one.sum()) for one in inside], [int(truths[one].sum()) for one in inside])


def mean_of_users(groups: Groups, activity: Ints, values: Floats) -> list[Interval]:
    """Return the mean value of the users of each group, with its interval."""
    of_user = places(activity, groups.bounds)
    inside = [values[of_user == place][None] for place in range(len(groups.bounds))]
    return [mean_intervals(one, resamples=FEWER)[0] for one in inside]


def recall_of_items(groups: Groups, taken: Ints, hits: Ints) -> list[float]:
    """Return which share of what was to be found of each group's items stood in lists."""
    of_item = places(taken, groups.bounds) if groups.bounds else np.empty(0, np.int64)
    return [float(hits[of_item == place].sum()) / max(truths, 1) for place, truths in enumerate(groups.truths)]
