import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array

from diffmm_dist.graph.even_parts import _cut, _fill, even_parts


def power_law(num_users, num_items, num_edges, seed):
    """A symmetric matrix of users and items, some of which have most edges, and some none."""
    draw = np.random.default_rng(seed)
    users = np.minimum(draw.pareto(1.0, num_edges) * num_users / 50, num_users - 1).astype(np.int64)
    items = np.minimum(draw.pareto(1.0, num_edges) * num_items / 50, num_items - 1).astype(np.int64) + num_users
    size = num_users + num_items
    ends = np.concatenate([users, items]), np.concatenate([items, users])
    matrix = coo_array((np.ones(2 * num_edges, np.int64), ends), shape=(size, size)).tocsr()
    return matrix, np.repeat([0, 1], [num_users, num_items])


@pytest.mark.parametrize("num_parts", [2, 3, 8, 13])
@pytest.mark.parametrize("start", ["all in one", "at random"])
def test_every_kind_is_even_and_few_edges_are_cut(num_parts, start):
    matrix, kinds = power_law(700, 301, 6000, seed=num_parts)
    random = np.random.default_rng(1).integers(0, num_parts, len(kinds))
    found = even_parts(matrix, kinds, np.zeros(len(kinds), np.int64) if start == "all in one" else random, num_parts)
    for kind in (0, 1):
        sizes = np.bincount(found[kinds == kind], minlength=num_parts)
        share = (kinds == kind).sum() / num_parts
        assert sizes.max() <= max(np.ceil(share), 1.03 * share)
    assert _cut(matrix, found) < _cut(matrix, random)


def test_islands_stay_whole():
    blocks = np.kron(np.eye(4, dtype=np.int64), np.ones((10, 10), np.int64))
    islands = np.arange(40) // 10
    assert (even_parts(csr_array(blocks), np.zeros(40, np.int64), islands, 4) == islands).all()


@pytest.mark.parametrize(("size", "num_parts"), [(8, 8), (16, 8), (40, 20)])
def test_no_part_is_empty_where_shares_are_small(size, num_parts):
    both = np.ones((size, size), np.int64)
    matrix = csr_array(np.block([[0 * both, both], [both, 0 * both]]))
    kinds = np.repeat([0, 1], size)
    found = even_parts(matrix, kinds, np.zeros(2 * size, np.int64), num_parts)
    for kind in (0, 1):
        assert (np.bincount(found[kinds == kind], minlength=num_parts) == size // num_parts).all()


def test_a_node_gets_what_it_would_lose_most_by_missing():
    affinity = np.array([[5, 4], [5, 0], [5, 3], [0, 1]], np.float32)
    assert _fill(affinity, np.array([2, 2])).tolist() == [1, 0, 0, 1]


def test_the_cut_is_what_counting_gives():
    dense = np.array([[0, 2, 1], [2, 0, 0], [1, 0, 0]])
    assert _cut(csr_array(dense), np.array([0, 1, 0])) == 4


def test_the_weight_of_a_part_stays_near_its_share():
    matrix, kinds = power_law(3000, 1200, 40_000, seed=5)
    weights = np.asarray(matrix.sum(axis=1)).ravel()
    found = even_parts(matrix, kinds, np.zeros(len(kinds), np.int64), 4)
    assert np.bincount(found, weights=weights).max() < 1.15 * weights.sum() / 4
