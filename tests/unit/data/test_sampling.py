from itertools import pairwise

import pytest
import torch

from diffmm_dist.data.batches import EpochBatches
from diffmm_dist.data.sampling import NegativeSampler, check_negatives_exist
from diffmm_dist.errors import UserError
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR
from tests.support.builders import random_pairs


def test_negatives_are_never_positives_and_uniform_over_the_rest():
    interactions = random_pairs(4, 9, share=0.5, seed=2, empty_rows=[1])
    draws = 20_000
    rows = torch.arange(4).repeat_interleave(draws)
    negatives = NegativeSampler(interactions).draw(rows, torch.arange(rows.numel()), RandomStream.of(1))
    assert not bool(interactions.contains(rows, negatives).any())
    for user in range(4):
        counts = torch.bincount(negatives[rows == user], minlength=9).double()
        free = interactions.dense()[user] == 0
        expected = draws / int(free.sum())
        chi_square = ((counts[free] - expected) ** 2 / expected).sum()
        assert chi_square < 35  # 8 degrees of freedom or fewer: far beyond the 0.1 % bound


def test_a_user_with_one_item_left_gets_it():
    interactions = CSR.from_pairs(
        torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1, 2, 4, 5]), num_rows=1, num_columns=6
    )
    negatives = NegativeSampler(interactions).draw(
        torch.zeros(50, dtype=torch.int64), torch.arange(50), RandomStream.of(0)
    )
    assert set(negatives.tolist()) == {3}


def test_negatives_are_keyed_by_the_interaction():
    interactions = random_pairs(30, 40, share=0.2)
    rows, ids = interactions.row_ids, torch.arange(interactions.num_entries)
    whole = NegativeSampler(interactions).draw(rows, ids, RandomStream.of(1))
    chosen = torch.tensor([7, 3, 50])
    assert torch.equal(NegativeSampler(interactions).draw(rows[chosen], ids[chosen], RandomStream.of(1)), whole[chosen])


def test_a_user_with_every_item_is_refused():
    check_negatives_exist(random_pairs(3, 5, share=0.2))
    full = CSR.from_pairs(torch.tensor([1, 1]), torch.tensor([0, 1]), num_rows=2, num_columns=2)
    with pytest.raises(UserError, match=r"user 1 has interacted with all 2 items .*\(1 such users\)"):
        check_negatives_exist(full)
    with pytest.raises(UserError, match="user 'eve' "):
        check_negatives_exist(full, {0: "'bob'", 1: "'eve'"}.get)


@pytest.mark.parametrize("total", [1, 10, 64, 101])
@pytest.mark.parametrize("batch_size", [1, 10, 64])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_batches_are_the_same_for_any_number_of_workers(total, batch_size, num_workers):
    stream = RandomStream.of(5, total)
    whole = EpochBatches(torch.arange(total), total=total, batch_size=batch_size, stream=stream)
    cuts = [total * rank // num_workers for rank in range(num_workers + 1)]
    parts = [torch.arange(start, stop) for start, stop in pairwise(cuts)]
    workers = [EpochBatches(ids, total=total, batch_size=batch_size, stream=stream) for ids in parts]
    seen = []
    for index in range(whole.num_batches):
        union = torch.cat([ids[batches[index]] for ids, batches in zip(parts, workers, strict=True)])
        assert torch.equal(union.sort().values, whole[index].sort().values)
        assert len(union) == min(batch_size, total - index * batch_size)
        seen += union.tolist()
        sums = [batches.sums(ids**2)[index] for ids, batches in zip(parts, workers, strict=True)]
        assert sum(sums) == int((union**2).sum())
    assert sorted(seen) == list(range(total))
    assert {batches.num_batches for batches in workers} == {whole.num_batches}
