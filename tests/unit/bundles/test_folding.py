"""Embeddings of users who are lists of items, beside a plain least-squares fit."""

import numpy as np
import pytest

from diffmm_dist.bundles.folding import FoldIn
from diffmm_dist.bundles.rows import Rows
from tests.support.bundles import pairs_of, random_array, random_pairs

ITEMS = 40


@pytest.mark.parametrize("width", [1, 5])
def test_it_is_the_ridge_regression_of_the_docstring(width):
    items, histories = random_array(ITEMS, width, 2), random_pairs(9, ITEMS, 0.2, seed=7)
    ridge = (items.astype(np.float64) ** 2).sum() / width
    stacked = np.concatenate([items, np.sqrt(ridge) * np.eye(width)])
    wanted = np.zeros((ITEMS + width, 9))
    wanted[histories.items, histories.rows()] = 1
    expected = ridge * np.linalg.lstsq(stacked, wanted, rcond=None)[0].T
    found = FoldIn(Rows([items[:11], items[11:]], width)).users(histories)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_an_empty_history_one_item_and_embeddings_of_zeros():
    histories = pairs_of([1], [6], num_rows=2, num_items=ITEMS)
    found = FoldIn(Rows([random_array(ITEMS, 3, 3)], 3)).users(histories)
    assert not found[0].any()
    assert np.isfinite(found[1]).all()
    assert found[1].any()
    assert not FoldIn(Rows([np.zeros((ITEMS, 3), np.float32)], 3)).users(histories).any()
    assert FoldIn(Rows([random_array(ITEMS, 3, 3)], 3)).users(random_pairs(0, ITEMS)).shape == (0, 3)
