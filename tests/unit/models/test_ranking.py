"""Batches of users: who is drawn, which of their items, which negatives."""

import pytest
import torch

from diffmm_dist.errors import UserError
from diffmm_dist.models.base import PhaseContext
from diffmm_dist.models.common.ranking import RankingBatches, UserBatches
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support.builders import random_pairs, training_data

IDLE = [0, 7, 29]  # users without interactions


@pytest.fixture(scope="module")
def data():
    return training_data(random_pairs(30, 12, share=0.3, empty_rows=IDLE), {})


def context(epoch=0):
    return PhaseContext(World.single(), 3, epoch)


def drawn(batches, epoch=0):
    return [batches[index] for index in range(batches.begin(context(epoch)))]


def test_users_are_different_ones_and_uniform_over_those_with_items(data):
    batches = UserBatches(data, 9, num_batches=1000)
    batch_users = torch.stack([batch.user_rows for batch in drawn(batches)])
    assert batch_users.shape == (1000, 9)
    assert bool((batch_users.sort(dim=1).values.diff(dim=1) > 0).all())
    counts = torch.bincount(batch_users.flatten(), minlength=30).double()
    assert counts[IDLE].sum() == 0
    expected = 1000 * 9 / 27
    chi_square = ((counts[counts > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 55  # 26 degrees of freedom: far beyond the 0.1 % bound, and drawn without replacement besides


def test_items_are_the_users_own_and_negatives_are_not(data):
    pairs = torch.cat([torch.stack([b.user_rows, b.pos_items, b.neg_items]) for b in drawn(UserBatches(data, 20))], 1)
    users, positives, negatives = pairs
    assert bool(data.interactions.contains(users, positives).all())
    assert not bool(data.interactions.contains(users, negatives).any())


def test_a_users_items_are_equally_likely(data):
    batches = drawn(UserBatches(data, 27, num_batches=1000))
    users = torch.cat([batch.user_rows for batch in batches])
    items = torch.cat([batch.pos_items for batch in batches])
    counts = torch.bincount(items[users == 1], minlength=12).double()
    own = data.interactions.dense()[1] > 0
    expected = 1000 / int(own.sum())
    assert float(((counts[own] - expected) ** 2 / expected).sum()) < 30


def test_a_batch_larger_than_there_are_users_repeats_them(data):
    batches = UserBatches(data, 40, num_batches=200)
    users = torch.cat([batch.user_rows for batch in drawn(batches)])
    assert batches.num_examples == users.numel() == 200 * 40
    assert set(users.tolist()) == set(range(30)) - set(IDLE)


def test_draws_differ_between_batches_and_epochs_and_are_repeated(data):
    batches = UserBatches(data, 9)
    first, again, later = (drawn(batches, epoch) for epoch in (0, 0, 1))
    assert len(first) == -(-data.num_interactions // 9)
    as_lists = [[batch.user_rows.tolist() for batch in epoch] for epoch in (first, again, later)]
    assert as_lists[0] == as_lists[1] != as_lists[2]
    assert as_lists[0][0] != as_lists[0][1]


@pytest.mark.parametrize("batches", [RankingBatches, UserBatches])
def test_a_user_with_every_item_is_refused(batches):
    full = CSR.from_pairs(torch.tensor([1, 1]), torch.tensor([0, 1]), num_rows=2, num_columns=2)
    with pytest.raises(UserError, match="user 1 has interacted with all 2 items"):
        batches(training_data(full, {}), 4)
