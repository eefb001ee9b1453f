import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmm_dist.parallel import random as random_module
from diffmm_dist.parallel.random import RandomStream

STREAM = RandomStream.of(421, "noise", 3, "visual")
ROWS = {
    "normal": lambda ids, n: STREAM.normal_rows(ids, n),
    "dropout": lambda ids, n: STREAM.dropout_rows(ids, n, keep_prob=0.7),
    "uniform": lambda ids, n: STREAM.symmetric_uniform_rows(ids, n),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_depends_on_its_id_alone(kind, monkeypatch):
    ids = torch.tensor([5, 0, 99, 5, 12345678901])
    whole = ROWS[kind](ids, 37)
    assert torch.equal(whole[0], whole[3])
    for position in range(len(ids)):
        assert torch.equal(ROWS[kind](ids[position : position + 1], 37)[0], whole[position])
    monkeypatch.setattr(random_module, "_SLICE_ELEMENTS", 80)  # two rows per slice
    assert torch.equal(ROWS[kind](ids, 37), whole)


@pytest.mark.parametrize("kind", ROWS)
def test_a_value_depends_on_its_column_alone(kind):
    ids, columns = torch.arange(9), torch.tensor([36, 0, 7, 7])
    assert torch.equal(ROWS[kind](ids, columns), ROWS[kind](ids, 37)[:, columns])


def test_the_outermost_hashes_are_finite():
    hashes = torch.tensor([[-(2**31), 2**31 - 1, 0]], dtype=torch.int32)

    class Outermost(RandomStream):
        def _hashed_rows(self, ids, columns):
            yield slice(0, 1), hashes, torch.empty(1, 3)

    values = Outermost(0).normal_rows(torch.arange(1), 3)
    assert 5 < values[0, 0] < 6
    assert values[0, 1] == 0  # what the lowest of all would be is taken for dropped
    assert abs(values[0, 2]) < 1e-6


def check_standard_normal(values):
    count = values.numel()
    assert abs(values.mean()) < 5 / math.sqrt(count)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert bool(torch.isfinite(values).all())
    # Kolmogorov-Smirnov distance to the normal distribution; 1.95 / sqrt(n) is its 0.1 % bound.
    ordered = values.flatten().sort().values
    cumulative = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    assert (cumulative - torch.arange(1, count + 1) / count).abs().max() < 1.95 / math.sqrt(count)


@pytest.mark.parametrize("keep_prob", [0.1, 0.5, 0.93])
def test_normal_rows_after_dropout(keep_prob):
    ids = torch.arange(300)
    values = STREAM.normal_rows(ids, 1000, keep_prob=keep_prob)
    factors = STREAM.dropout_rows(ids, 1000, keep_prob=keep_prob)
    assert ((values != 0) == (factors != 0)).double().mean() > 1 - 1e-5  # float32 rounds the hash at the border
    check_standard_normal((values[values != 0] * keep_prob).double())
    pairs = STREAM.dropout_pairs(ids, torch.full_like(ids, 7), keep_prob=keep_prob)
    assert torch.equal(pairs, factors[:, 7])


def test_normal_rows_in_another_type_are_the_same_values_rounded():
    ids, std = torch.arange(40), torch.linspace(0, 3, 40)
    options = {"std": std, "keep_prob": 0.5}
    rounded = STREAM.normal_rows(ids, 300, dtype=torch.bfloat16, **options)
    assert torch.equal(rounded, STREAM.normal_rows(ids, 300, **options).bfloat16())


def test_normal_rows_are_standard_normal_and_uncorrelated():
    values = STREAM.normal_rows(torch.arange(400), 1001).double()
    check_standard_normal(values)
    for table in (values, values.T):
        correlations = torch.corrcoef(table).fill_diagonal_(0)
        assert correlations.abs().max() < 6 / math.sqrt(table.shape[1])


@pytest.mark.parametrize("keep_prob", [0.1, 0.5, 0.93, 1.0])
def test_dropout_rows_keep_the_mean(keep_prob):
    factors = STREAM.dropout_rows(torch.arange(300), 1000, keep_prob=keep_prob)
    assert set(factors.unique().tolist()) <= {0.0, factors.max().item()}
    assert factors.max().item() == pytest.approx(1 / keep_prob)
    assert factors.mean().item() == pytest.approx(1, abs=5 * math.sqrt((1 / keep_prob - 1) / 300_000) + 1e-6)


def test_uniform_and_integers():
    ids = torch.arange(100_000)
    values = STREAM.uniform(ids)
    assert 0 <= values.min() < 1e-3
    assert 1 - 1e-3 < values.max() < 1
    bounds = torch.tensor([1, 2, 3, 1000]).repeat(25_000)
    drawn = STREAM.integers(ids, bounds)
    assert bool(((drawn >= 0) & (drawn < bounds)).all())
    counts = torch.bincount(drawn[2::4], minlength=3).double()
    assert ((counts - 25_000 / 3) ** 2 / (25_000 / 3)).sum() < 20  # chi-square, 2 degrees of freedom
    rows = STREAM.symmetric_uniform_rows(ids[:100], 1000)
    assert -1 <= rows.min() < -0.99
    assert 0.99 < rows.max() <= 1
    assert abs(rows.mean()) < 0.02


@given(st.integers(1, 3000), st.integers(0, 2**31))
def test_permute_is_a_bijection(count, seed):
    places = RandomStream.of(seed, "shuffle").permute(torch.arange(count), count)
    assert torch.equal(places.sort().values, torch.arange(count))


def test_permute_needs_no_other_ids_and_shuffles():
    count = 5000
    places = STREAM.permute(torch.arange(count), count)
    chosen = torch.tensor([0, 77, 4999])
    assert torch.equal(STREAM.permute(chosen, count), places[chosen])
    assert abs(torch.corrcoef(torch.stack([places.double(), torch.arange(count).double()]))[0, 1]) < 0.07
    assert not torch.equal(places, RandomStream.of(422, "shuffle").permute(torch.arange(count), count))


def test_streams_differ_by_every_part_of_their_key():
    ids = torch.arange(1000)
    keys = [(1, "a", 2), (1, "a", 3), (2, "a", 2), (1, "b", 2), ("1", "a", 2)]
    streams = [*(RandomStream.of(*key) for key in keys), RandomStream.of(*keys[0]).child("x")]
    drawn = torch.stack([stream.uniform(ids) for stream in streams])
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.15
    assert RandomStream.of(1, "a", 2) == RandomStream.of(1, "a", 2)


def test_each_row_may_have_a_spread_of_its_own():
    ids, std = torch.arange(50), torch.linspace(0, 3, 50)
    stream = RandomStream.of("spread")
    scaled = stream.normal_rows(ids, 2000, std=std)
    torch.testing.assert_close(scaled, stream.normal_rows(ids, 2000) * std[:, None])
    torch.testing.assert_close(scaled.std(dim=1), std, rtol=0.1, atol=1e-6)
