"""Metrics of single users: their means are what `evaluate` gives, and items are counted where they are found."""

import pytest
import torch

from diffmm_dist.evaluation.evaluator import evaluate
from diffmm_dist.evaluation.users import user_figures
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support.builders import random_pairs, random_rows, whole


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_means_are_those_of_the_evaluation(batch_size):
    users, items = random_rows(40, 5, seed=1), random_rows(25, 5, seed=2)
    truth, masked = random_pairs(40, 25, 0.1, seed=3, empty_rows=[0, 9]), random_pairs(40, 25, 0.3, seed=4)
    options = {"truth": truth, "masked": [masked], "ks": [3, 10]}
    expected = evaluate(users, whole(items), batch_size=8, world=World.single(), **options)
    rows = torch.nonzero(truth.row_counts).flatten().flip(0)
    found = user_figures(users, items, rows, batch_size=batch_size, **options)
    assert found.rows.tolist() == rows.tolist()
    means = {name: values.mean() for name, values in found.metrics.items()} | found.coverage
    assert means == pytest.approx(expected)


def test_items_are_counted_where_they_are_found():
    """Lists of two: user 0 gets items 2 and 1, user 1 items 2 and 0, since what is masked is never listed."""
    scores = torch.tensor([[1.0], [2.0], [3.0]])
    pairs = [torch.tensor(column) for column in ([0, 0, 1, 1], [0, 1, 0, 2])]
    truth = CSR.from_pairs(*pairs, num_rows=2, num_columns=3)
    masked = CSR.from_pairs(torch.tensor([1]), torch.tensor([1]), num_rows=2, num_columns=3)
    found = user_figures(torch.ones(2, 1), scores, torch.arange(2), truth=truth, masked=[masked], ks=[1, 2])
    assert found.truths.tolist() == [2, 1, 1]
    assert found.hits[1].tolist() == [0, 0, 1]
    assert found.hits[2].tolist() == [1, 1, 1]
    assert found.metrics["recall@2"].tolist() == [0.5, 1.0]
    assert found.coverage == {"coverage@1": pytest.approx(1 / 3), "coverage@2": 1.0}


def test_nobody_has_figures_where_nobody_has_true_items():
    truth = random_pairs(4, 3, 0.0)
    found = user_figures(torch.ones(4, 1), torch.ones(3, 1), torch.arange(0), truth=truth, masked=[], ks=[2])
    assert found.metrics["recall@2"].shape == (0,)
    assert found.hits[2].tolist() == [0, 0, 0]
