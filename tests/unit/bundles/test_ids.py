"""Original ids in the columns of other libraries."""

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist.bundles.ids import Ids
from diffmm_dist.errors import UserError

pd = pytest.importorskip("pandas", reason="pandas is not installed")
NUMBERS = Ids(pa.chunked_array([[5, 3], [9]]), "item")
TEXTS = Ids(pa.chunked_array([pa.array(["a", "b", "0042"])]), "user")

COLUMNS = {
    "list": lambda ids: ids, "tuple": tuple, "generator": iter, "pyarrow": pa.array,
    "chunks": lambda ids: pa.chunked_array([ids[:1], ids[1:]]),
    "dictionary": lambda ids: pa.array(ids).dictionary_encode(),
    "numpy": np.array, "numpy objects": lambda ids: np.array(ids, object), "pandas": pd.Series,
    "pandas index": pd.Index, "categories": lambda ids: pd.Series(ids, dtype="category"),
    "numpy scalars": lambda ids: list(np.array(ids)),
}  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_any_column_has_its_rows(column):
    assert NUMBERS.rows(column([9, 5, 9])).tolist() == [2, 0, 2]
    assert TEXTS.rows(column(["0042", "a"])).tolist() == [2, 0]


def test_types_of_numbers_and_of_text():
    for kind in (np.int8, np.uint16, np.int64, np.uint64):
        assert NUMBERS.rows(np.array([3], kind)).tolist() == [1]
    for kind in (pa.large_string(), pa.string_view(), pa.string()):
        assert TEXTS.rows(pa.array(["b"], pa.string()).cast(kind)).tolist() == [1]
    assert NUMBERS.rows(["3", "9"]).tolist() == [1, 2]
    assert Ids(pa.chunked_array([["1", "2"]]), "user").rows([2]).tolist() == [1]


def test_one_id_is_a_column_of_one():
    assert NUMBERS.rows(3).tolist() == NUMBERS.rows(np.int32(3)).tolist() == [1]
    assert TEXTS.rows("b").tolist() == [1]
    assert TEXTS.rows([]).tolist() == []


def test_a_column_of_polars():
    polars = pytest.importorskip("polars", reason="polars is not installed")
    assert NUMBERS.rows(polars.Series([9, 3])).tolist() == [2, 1]
    assert TEXTS.rows(polars.Series(["b"])).tolist() == [1]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1.5], "a column of double holds no item ids"), ([True], "holds no item ids"),
        ([None, 3], "1 of 2 item ids are"),
        (pd.Series([3, None]), "holds no item ids"), ([[3]], "holds no item ids"), (3.0, "is no column of item ids"),
        (b"abc", "is no column"), (None, "is no column"), ([7, 8, 7], "no item 7, 8; its ids look like 5"),
        (["x"], "whole numbers, not 'x'"), (["1_0"], "whole numbers, not '1_0'"), ([2**70], "these are no item ids"),
        (np.array([2**63], np.uint64), "whole numbers of 64 bits"), ([3, "a"], "these are no item ids"),
        ({"a": 1}, "a table holds no column of item ids"),
        ({3, 5}, "a set, which has no order, holds no column of item ids"),
        (pd.DataFrame({"item": [3]}), "a table holds no column"), (pa.table({"item": [3]}), "a table holds no column"),
        (np.array([[3]]), "these are no item ids"),
    ],
)  # fmt: skip
def test_what_is_no_id_of_the_bundle_is_one_sentence(ids, said):
    with pytest.raises(UserError, match=said):
        NUMBERS.rows(ids)


def test_rows_have_ids_and_minus_one_has_none():
    assert NUMBERS.of(np.array([2, -1, 0])).to_pylist() == [9, None, 5]
    column, rows = TEXTS.known(["b", "nobody"])
    assert (column.to_pylist(), rows.tolist()) == (["b", "nobody"], [1, -1])
