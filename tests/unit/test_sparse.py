import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmm_dist.sparse import CSR
from tests.support.builders import random_pairs
from tests.support.reference import dense


@st.composite
def patterns(draw):
    num_rows, num_columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    pairs = draw(st.lists(st.tuples(st.integers(0, num_rows - 1), st.integers(0, num_columns - 1)), max_size=30))
    rows, columns = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    return CSR.from_pairs(rows, columns, num_rows=num_rows, num_columns=num_columns), pairs


@given(patterns())
def test_from_pairs_keeps_each_pair_once(pattern_and_pairs):
    pattern, pairs = pattern_and_pairs
    expected = torch.zeros(pattern.num_rows, pattern.num_columns)
    for row, column in pairs:
        expected[row, column] = 1
    assert torch.equal(dense(pattern), expected)
    assert torch.equal(pattern.dense(), expected)
    assert torch.equal(pattern.row_counts, expected.sum(1).long())
    assert torch.equal(pattern.column_counts, expected.sum(0).long())


@given(patterns(), st.data())
def test_select_transpose_contains(pattern_and_pairs, data):
    pattern, _ = pattern_and_pairs
    matrix = dense(pattern)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, pattern.num_rows - 1), max_size=9)), dtype=torch.int64)
    assert torch.equal(dense(pattern.select(rows)), matrix[rows])
    assert torch.equal(dense(pattern.transpose()), matrix.T)
    table = torch.arange(pattern.num_columns * 3.0).view(-1, 3)
    assert torch.equal(pattern.matmul(table), matrix @ table)
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(pattern.keys), max_size=len(pattern.keys))))
    expected = torch.zeros_like(matrix)
    expected[pattern.row_ids[kept.bool()], pattern.indices[kept.bool()]] = 1
    assert torch.equal(dense(pattern.filter(kept.bool())), expected)
    every = torch.cartesian_prod(torch.arange(pattern.num_rows), torch.arange(pattern.num_columns))
    assert torch.equal(pattern.contains(every[:, 0], every[:, 1]), matrix.flatten().bool())


def test_keys_ascend_and_transposed_rows_are_sorted():
    pattern = random_pairs(20, 30, empty_rows=[0, 19], empty_columns=[3])
    assert bool((pattern.keys.diff() > 0).all())
    assert bool((pattern.transpose().keys.diff() > 0).all())
