import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmm_dist.evaluation import equations, evaluator
from diffmm_dist.evaluation.evaluator import evaluate, rank_items
from diffmm_dist.evaluation.metrics import MetricSums
from diffmm_dist.evaluation.topk import merge_topk, topk
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR
from tests.support import reference
from tests.support.builders import random_pairs, random_rows, whole

ALONE = World.single()
NOTHING = random_pairs(3, 4, share=0)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 14), st.integers(1, 4), st.integers(0, 1000))
def test_topk_breaks_ties_by_the_lower_column(num_rows, num_columns, k, num_values, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(num_values, (num_rows, num_columns), generator=generator).float()
    scores[scores == 0] = -torch.inf  # as masked items are
    values, columns = topk(scores, k)
    assert torch.equal(columns, reference.topk(scores, k))
    assert torch.equal(values, scores.gather(1, columns))
    blocks = [(start, scores[:, start : start + 3]) for start in range(0, num_columns, 3)]
    merged = merge_topk(blocks, k)
    assert torch.equal(merged[1], columns)
    assert torch.equal(merged[0], values)


@pytest.mark.parametrize("items_per_block", [4, 100])
@pytest.mark.parametrize("integer_scores", [False, True])
def test_evaluate_equals_the_reference(items_per_block, integer_scores, monkeypatch):
    monkeypatch.setattr(evaluator, "ITEMS_PER_BLOCK", items_per_block)
    users, items = random_rows(13, 5, 1), random_rows(11, 5, 2)
    if integer_scores:  # ties everywhere
        users, items = users.round(), items.round()
    truth = random_pairs(13, 11, seed=3, share=0.3, empty_rows=[0, 7])
    masked = [random_pairs(13, 11, seed=4, share=0.4), random_pairs(13, 11, seed=5, share=0.1)]
    hidden = reference.dense(masked[0]) + reference.dense(masked[1]) > 0
    ids = torch.randperm(11, generator=torch.Generator().manual_seed(6)).split([5, 0, 6])  # parts of a partition
    parts = [(part.sort().values, items[part.sort().values]) for part in ids]
    options = {"truth": truth, "masked": masked, "ks": [1, 3, 20], "batch_size": 4, "world": ALONE}
    ours = evaluate(users, whole(items), **options)
    assert evaluate(users, parts, **options) == ours
    expected = {}
    for k in (1, 3, 20):
        expected |= reference.ranking_metrics(users @ items.T, reference.dense(truth), hidden, k)
    assert ours == pytest.approx(expected)
    # PromptMM's NDCG comes on top, and nothing else moves.
    more = {}
    for k in (1, 3, 20):
        more |= reference.ranking_metrics(users @ items.T, reference.dense(truth), hidden, k, longest=20)
    found = evaluate(users, parts, **options, retrieved_ndcg=True)
    assert found == pytest.approx(more)
    assert found == ours | {name: value for name, value in found.items() if name.startswith("ndcg_retrieved@")}


def test_a_huge_cutoff_costs_nothing():
    users, items = random_rows(3, 2, 1), random_rows(4, 2, 2)
    truth = random_pairs(3, 4, share=0.5)
    metrics = evaluate(users, whole(items), truth=truth, masked=[], ks=[4, 10**9], batch_size=2, world=ALONE)
    for name in ("recall", "ndcg", "mrr", "coverage"):
        assert metrics[f"{name}@1000000000"] == metrics[f"{name}@4"]


def test_hand_computed_list():
    # Scores rank items 3, 2, 1, 0; item 3 is masked; true are 2 and 0: hits at ranks 1 and 3.
    users, items = torch.ones(1, 1), torch.arange(4.0)[:, None]
    truth = CSR.from_pairs(torch.tensor([0, 0]), torch.tensor([2, 0]), num_rows=1, num_columns=4)
    masked = CSR.from_pairs(torch.tensor([0]), torch.tensor([3]), num_rows=1, num_columns=4)
    metrics = evaluate(users, whole(items), truth=truth, masked=[masked], ks=[2, 3], batch_size=1, world=ALONE)
    assert metrics["recall@2"] == 0.5
    assert metrics["recall@3"] == 1
    assert metrics["precision@3"] == pytest.approx(2 / 3)
    assert metrics["hit_rate@2"] == 1
    assert metrics["mrr@2"] == 1
    assert metrics["ndcg@2"] == pytest.approx(1 / (1 + 0.6309298), rel=1e-6)
    assert metrics["ndcg@3"] == pytest.approx(1.5 / (1 + 0.6309298), rel=1e-6)
    assert metrics["coverage@2"] == 0.5


def retrieved_of(true, k):
    """The metrics of one user whose list is 9, 8, .. 0, with PromptMM's NDCG."""
    truth = CSR.from_pairs(torch.zeros(len(true), dtype=torch.int64), torch.tensor(true), num_rows=1, num_columns=10)
    sums = MetricSums(k, num_items=10, device=torch.device("cpu"), retrieved_ndcg=True)
    sums.add(torch.arange(9, -1, -1)[None, : max(k)], truth)
    return sums.result(ALONE)


def test_hand_computed_ndcg_of_what_was_retrieved():
    # Hits at ranks 2 and 4; of the five true items three come too late.
    metrics = retrieved_of([8, 6, 2, 1, 0], [1, 2, 4])
    gains = [1 / math.log2(rank + 1) for rank in range(1, 6)]
    assert metrics["ndcg_retrieved@1"] == 0
    assert metrics["ndcg_retrieved@2"] == pytest.approx(gains[1] / (gains[0] + gains[1]))
    assert metrics["ndcg_retrieved@4"] == pytest.approx((gains[1] + gains[3]) / (gains[0] + gains[1]))
    assert metrics["ndcg@4"] == pytest.approx((gains[1] + gains[3]) / sum(gains[:4]))
    # With a shorter longest list the second hit is unknown, also at the smaller cut-off.
    assert retrieved_of([8, 6, 2, 1, 0], [1, 2])["ndcg_retrieved@2"] == pytest.approx(gains[1] / gains[0])
    assert retrieved_of([0, 1], [2, 5])["ndcg_retrieved@5"] == 0


@given(st.integers(1, 9), st.integers(0, 1000))
def test_ndcg_of_what_was_retrieved_is_never_below_ndcg(num_true, seed):
    generator = torch.Generator().manual_seed(seed)
    lists = torch.stack([torch.randperm(10, generator=generator) for _ in range(4)])
    true = torch.stack([torch.randperm(10, generator=generator)[:num_true] for _ in range(4)])
    users = torch.arange(4).repeat_interleave(num_true)
    truth = CSR.from_pairs(users, true.flatten(), num_rows=4, num_columns=10)
    sums = MetricSums([1, 3, 6], num_items=10, device=torch.device("cpu"), retrieved_ndcg=True)
    for k, per_user in zip((1, 3, 6), sums.per_user(lists[:, :6], truth), strict=True):
        columns = dict(zip(sums.names, per_user.T, strict=True))
        assert bool((columns["ndcg_retrieved"] >= columns["ndcg"]).all())
        assert num_true > 1 or torch.equal(columns["ndcg_retrieved"], columns["ndcg"])
        for row in range(4):
            places = [place for place, item in enumerate(lists[row, :6].tolist(), 1) if item in true[row]]
            ranks = [place for place in places if place <= k]
            expected = equations.retrieved_ndcg(ranks, num_retrieved=len(places), k=k)
            assert float(columns["ndcg_retrieved"][row]) == pytest.approx(expected)


def test_a_true_item_that_is_masked_can_never_be_hit():
    users, items = torch.ones(1, 1), torch.arange(3.0)[:, None]
    everything = CSR.from_pairs(torch.zeros(3, dtype=torch.int64), torch.arange(3), num_rows=1, num_columns=3)
    metrics = evaluate(users, whole(items), truth=everything, masked=[everything], ks=[3], batch_size=1, world=ALONE)
    assert metrics["recall@3"] == 0
    assert metrics["coverage@3"] == 0


def test_single_item_users_have_precision_recall_over_k():
    truth = CSR.from_pairs(torch.arange(6), torch.tensor([0, 3, 5, 5, 1, 2]), num_rows=6, num_columns=8)
    metrics = evaluate(
        random_rows(6, 2),
        whole(random_rows(8, 2, 1)),
        truth=truth,
        masked=[],
        ks=[4],
        batch_size=10,
        world=World.single(),
    )
    assert metrics["precision@4"] == pytest.approx(metrics["recall@4"] / 4)


def test_lists_end_where_the_candidates_do():
    masked = random_pairs(3, 4, share=1.0)
    ((users, scores, items),) = rank_items(
        random_rows(3, 2), random_rows(4, 2), torch.arange(3), masked=[masked], k=2, batch_size=5
    )
    assert users.tolist() == [0, 1, 2]
    assert bool((items == -1).all())
    assert bool((scores == -torch.inf).all())


def test_no_users_give_zeros():
    metrics = evaluate(
        random_rows(3, 2),
        whole(random_rows(4, 2)),
        truth=NOTHING,
        masked=[],
        ks=[2],
        batch_size=2,
        world=World.single(),
    )
    assert set(metrics.values()) == {0.0}
