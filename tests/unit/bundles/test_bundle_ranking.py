"""Lists are those of a plain sort of all scores, whatever ties, is hidden, or is not allowed."""

import numpy as np
import pytest
import torch

from diffmm_dist.bundles import ranking
from diffmm_dist.bundles.ranking import Rule, best, topk
from diffmm_dist.bundles.rows import Rows
from diffmm_dist.evaluation.topk import topk as topk_of_evaluation
from tests.support.bundles import random_array, random_pairs

USERS, ITEMS, WIDTH = 7, 90, 5


def plain(asked, items, k, *, hidden=None, allowed=None, categories=None, at_most=1):
    """The lists as one would write them by hand."""
    lists = []
    for user, row in enumerate(asked):
        scores = [float(np.float32(row @ item)) for item in items]
        order = sorted(range(len(items)), key=lambda item: (-scores[item], item))
        found, counts = [], {}
        for item in order:
            category = -1 if categories is None else categories[item]
            is_out = (hidden is not None and item in hidden.of_row(user)) or (allowed is not None and not allowed[item])
            if is_out or (category >= 0 and counts.get(category, 0) >= at_most):
                continue
            counts[category] = counts.get(category, 0) + 1
            found.append(item)
        lists.append((found[:k] + [-1] * k)[: min(k, len(items))])
    return lists


@pytest.fixture(params=["one block", "blocks of 16"])
def blocks(request, monkeypatch):
    if request.param != "one block":
        monkeypatch.setattr(ranking, "_CANDIDATES_PER_BLOCK", 16)


@pytest.fixture(params=["any", "many ties"])
def tables(request):
    asked, items = random_array(USERS, WIDTH, 1), random_array(ITEMS, WIDTH, 2)
    if request.param == "many ties":
        asked, items = np.rint(asked), np.rint(items)  # so that sums of products are exact too
    return asked, items


CATEGORIES = np.random.default_rng(3).integers(-1, 4, ITEMS)
RULES = {
    "none": {}, "some are hidden": {"hidden": random_pairs(USERS, ITEMS)},
    "nearly all are hidden": {"hidden": random_pairs(USERS, ITEMS, share=0.95)},
    "some are allowed": {"allowed": np.arange(ITEMS) % 3 == 0},
    "one is allowed": {"allowed": np.arange(ITEMS) == 77}, "none is allowed": {"allowed": np.zeros(ITEMS, bool)},
    "one of a category": {"categories": CATEGORIES, "at_most": 1},
    "three of a category, some hidden": {"categories": CATEGORIES, "at_most": 3, "hidden": random_pairs(USERS, ITEMS)},
    "one category": {"categories": np.zeros(ITEMS, int), "at_most": 2, "allowed": np.arange(ITEMS) > 40},
}  # fmt: skip


@pytest.mark.parametrize("k", [1, 3, 20, 89, 90, 200])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_lists_are_those_of_a_plain_sort(blocks, tables, rule, k):
    asked, items = tables
    of_items = {name: value for name, value in rule.items() if name != "hidden"}
    pieces = Rows([items[:33], items[33:34], items[34:]], WIDTH)
    lists = best(asked, pieces, k, hidden=rule.get("hidden"), rule=Rule(**of_items))
    assert lists.rows.tolist() == plain(asked, items, k, **rule)
    assert ((lists.rows < 0) == np.isneginf(lists.scores)).all()
    found = lists.rows >= 0
    expected = np.take_along_axis(asked @ items.T, np.where(found, lists.rows, 0), axis=1)
    np.testing.assert_allclose(lists.scores[found], expected[found], rtol=1e-5, atol=1e-6)


def test_scores_are_divided_by_lengths(tables):
    asked, items = tables
    lengths = Rows([items], WIDTH).lengths()
    lists = best(asked, Rows([items], WIDTH), 9, lengths=lengths)
    cosines = (asked @ items.T) / lengths
    np.testing.assert_allclose(lists.scores, -np.sort(-cosines, axis=1)[:, :9], rtol=1e-6)


@pytest.mark.parametrize("columns", [1, 5, 16, 40, 64, 400, 1000])
@pytest.mark.parametrize("kind", ["any", "few values", "equal", "mostly minus infinity", "falling"])
def test_topk_is_that_of_the_evaluation(kind, columns):
    scores = random_array(30, columns, columns)
    if kind == "few values":
        scores = np.rint(scores)
    elif kind == "equal":
        scores[:] = 2
    elif kind == "mostly minus infinity":
        scores[:, 2:] = -np.inf
        scores[3] = -np.inf
    elif kind == "falling":
        scores = -np.sort(-scores, axis=1)
    for k in {1, 2, 7, columns // 4, columns - 1, columns} - {0}:
        found = topk(scores, k)
        expected = topk_of_evaluation(torch.from_numpy(scores), k)
        assert np.array_equal(found.scores, expected[0].numpy())
        assert np.array_equal(found.rows, expected[1].numpy()), k


def test_nobody_asks():
    lists = best(np.empty((0, WIDTH), np.float32), Rows([random_array(9, WIDTH)], WIDTH), 3, hidden=random_pairs(0, 9))
    assert lists.rows.shape == (0, 3)
