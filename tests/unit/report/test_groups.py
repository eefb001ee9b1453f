"""Groups of users and items: about even, complete, and with the recall that belongs to them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmm_dist.report.groups import even_bounds, item_groups, mean_of_users, places, recall_of_items, user_groups


def test_bounds_cut_even_groups():
    assert even_bounds(np.arange(1, 13), 4) == [(1, 3), (4, 6), (7, 9), (10, 12)]
    assert even_bounds(np.array([5, 5, 5, 5, 5, 9]), 3) == [(5, 5), (6, 9)]
    assert even_bounds(np.array([7]), 6) == [(7, 7)]
    assert even_bounds(np.array([], np.int64)) == []


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80), st.integers(1, 7))
def test_every_count_is_in_one_group(counts, most):
    counts = np.array(counts)
    bounds = even_bounds(counts, most)
    assert 1 <= len(bounds) <= most
    assert all(low <= high for low, high in bounds)
    assert all(one[1] + 1 == other[0] for one, other in pairwise(bounds))
    found = places(counts, bounds)
    assert (found >= 0).all()
    assert all(bounds[place][0] <= count <= bounds[place][1] for place, count in zip(found, counts, strict=True))


def test_users_are_grouped_by_what_they_did():
    activity, recall = np.array([1, 1, 2, 8, 9, 30]), np.array([0.0, 0.5, 1.0, 0.25, 0.75, 1.0])
    groups = user_groups(activity, np.array([1, 2, 1, 4, 4, 2]))
    assert (sum(groups.sizes), sum(groups.truths)) == (6, 14)
    means = mean_of_users(groups, activity, recall)
    assert means[0].mean == 0.25  # of both users with one interaction
    assert means[-1].mean == 1
    assert groups.labels()[0] == "1\n2"


def test_items_are_grouped_with_those_that_are_never_to_be_found():
    taken, truths, hits = np.array([0, 3, 5, 50, 90]), np.array([0, 2, 2, 4, 0]), np.array([0, 0, 1, 4, 0])
    groups = item_groups(taken, truths)
    assert (sum(groups.sizes), sum(groups.truths)) == (5, 8)
    assert (groups.bounds[0][0], groups.bounds[-1][1]) == (0, 90)
    recall = recall_of_items(groups, taken, hits)
    assert recall[-1] == 1
    assert sum(share * count for share, count in zip(recall, groups.truths, strict=True)) == pytest.approx(5)
