"""Which columns of a table are taken for vectors, which are refused, and what the values may be."""

import csv
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.features import FeatureSource
from tests.support.tables import interactions, load, write_arrow

IDS = [f"B{number:03}" for number in range(20)]
VALUES = np.random.default_rng(1).standard_normal((20, 12)).astype(np.float32)


def series(prefix="emb_", start=0, width=12, form="{}", values=VALUES):
    return {prefix + form.format(start + n): values[:, n] for n in range(width)}


def imported(tmp_path, columns, pattern=None, *, kind="parquet", **more):
    """Import features of the given columns, and return the features and the notes."""
    path = tmp_path / f"features.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.table({"asin": IDS} | columns), path)
    else:
        rows = zip(IDS, *(np.asarray(values).tolist() for values in columns.values()), strict=True)
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([["asin", *columns], *rows])
    source = FeatureSource("visual", str(path), item="asin", columns=pattern)
    dataset, notes = load(interactions(), tmp_path, features=(source,), **more)
    assert dataset.original_ids("items").to_pylist() == IDS
    return dataset.features("visual").numpy(), notes


def shuffled(columns):
    names = list(columns)
    return {name: columns[name] for name in [*names[5:], *names[:5]]}


OTHERS = {"price": np.arange(20.0), "year": np.arange(20) + 2000, "title": IDS}
NUMBERED = {
    "from 0": (series(), "visual: emb_0 .. emb_11, 12 columns"),
    "from 1": (series(start=1), "visual: emb_1 .. emb_12, 12 columns"),
    "with zeros in front": (series(form="{:03}"), "visual: emb_000 .. emb_011, 12 columns"),
    "without a name": (series(prefix=""), "visual: 0 .. 11, 12 columns"),
    "in another order": (shuffled(series()), "visual: emb_0 .. emb_11, 12 columns"),
}


@pytest.mark.parametrize(("columns", "note"), NUMBERED.values(), ids=NUMBERED)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_numbered_series_is_found_and_taken_in_the_order_of_its_numbers(tmp_path, columns, note, kind):
    found, notes = imported(tmp_path, OTHERS | columns, kind=kind)
    assert np.array_equal(found, VALUES)
    assert f"{note}; not used: price, year" in notes


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_column_of_lists_is_found_and_others_are_named(tmp_path, kind):
    lists = list(VALUES) if kind == "parquet" else [json.dumps(row.tolist()) for row in VALUES]
    found, notes = imported(tmp_path, OTHERS | {"embedding": lists}, kind=kind)
    assert np.array_equal(found, VALUES)
    assert "visual: embedding, lists; not used: price, year" in notes


UNCLEAR = {
    "no series": (
        {"price": VALUES[:, 0], "year": VALUES[:, 1]},
        None,
        "there is none, found price: float, year: float",
    ),
    "a single number": ({"price": VALUES[:, 0]}, None, "there is none, found price: float"),
    "only text": ({"title": IDS}, None, "there is none, found title: string"),
    "nothing": ({}, None, "there is none, found no other column"),
    "several series": (series() | series("pos_"), None, r"more than one of these, found emb_0 \.\. emb_11 or pos_0"),
    "a series and lists": (series() | {"e": list(VALUES)}, None, r"more than one of these, found e or emb_0 \.\."),
    "several lists": ({"a": list(VALUES), "b": list(VALUES)}, None, "more than one of these, found a or b"),
    "a gap": ({k: v for k, v in series().items() if k != "emb_7"}, None, "number 7 is missing"),
    "a number twice": (series() | {"emb_07": VALUES[:, 0]}, None, "number 7 is there twice"),
    "text in the series": (series() | {"emb_12": IDS}, None, "emb_12 holds no numbers"),
    "years": ({"sales2023": VALUES[:, 0], "sales2024": VALUES[:, 1]}, None, "there is none, found sales2023"),
    "a pattern with others": (series() | OTHERS, "*", "title holds no numbers"),
    "a pattern of no series": (
        {"price": VALUES[:, 0], "power": VALUES[:, 1]},
        "p*",
        "not numbered columns of one name",
    ),
    "a pattern of two series": (series() | series("emx_"), "em*", "not numbered columns of one name"),
    "a pattern with a gap": (series(start=1) | {"emb_14": VALUES[:, 0]}, "emb_*", "number 13 is missing"),
    "a pattern without a column": (series(), "e.*", r"no column matches --feature-columns e\.\*"),
    "a name that is not there": (series(), "emb_0,emb_x", r"has no column 'emb_x'; did you mean .*--feature-columns"),
    "lists of lists": ({"e": [[[1.0], [2.0]]] * 20}, None, "found e: list<"),
    "lists of text": ({"e": [["a"]] * 20}, None, "found e: list<"),
    "structs": ({"e": [{"x": 1.0}] * 20}, None, "found e: struct<"),
}


@pytest.mark.parametrize(("columns", "pattern", "sentence"), UNCLEAR.values(), ids=UNCLEAR)
def test_columns_that_are_not_clearly_one_vector_are_refused_with_the_candidates(tmp_path, columns, pattern, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        imported(tmp_path, columns, pattern)
    assert "--feature-columns" in str(caught.value)


CHOSEN = {
    "a pattern": (series() | series("pos_"), "emb_*", 12),
    "a pattern of lists": ({"a": list(VALUES), "b": list(-VALUES)}, "a*", 12),
    "one number": (series() | OTHERS, "emb_0", 1),
    "names in their own order": ({"r": VALUES[:, 1], "g": VALUES[:, 0]}, "g,r", 2),
    "a list by its name": ({"a": list(VALUES), "b": list(-VALUES)}, "a", 12),
}


@pytest.mark.parametrize(("columns", "pattern", "width"), CHOSEN.values(), ids=CHOSEN)
def test_columns_that_are_chosen(tmp_path, columns, pattern, width):
    assert np.array_equal(imported(tmp_path, columns, pattern)[0], VALUES[:, :width])


ROUNDED = np.round(VALUES * 8) / 4  # exact in every type below
TYPES = {
    "list views": pa.array(ROUNDED.tolist(), pa.list_view(pa.float32())),
    "large lists": pa.array(ROUNDED.tolist(), pa.large_list(pa.float64())),
    "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(ROUNDED.copy()),
    "decimals": pa.array([[decimal.Decimal(str(x)) for x in row] for row in ROUNDED.tolist()]),
    "JSON": pa.array([json.dumps(row.tolist()) for row in ROUNDED]),
    "text of NumPy": pa.array([str(row) for row in ROUNDED]),
    "dictionary of text": pa.array([str(row.tolist()) for row in ROUNDED]).dictionary_encode(),
}


@pytest.mark.parametrize("column", TYPES.values(), ids=TYPES)
def test_vectors_of_any_type(tmp_path, column):
    if pa.types.is_list_view(column.type):
        write_arrow(pa.table({"asin": IDS, "e": column}), tmp_path / "f.arrow")
        source = FeatureSource("visual", str(tmp_path / "f.arrow"), item="asin")
        found = load(interactions(), tmp_path, features=(source,))[0].features("visual").numpy()
    else:
        found, _ = imported(tmp_path, {"e": column})
    assert np.array_equal(found, ROUNDED)


@pytest.mark.parametrize("kind", ["columns", "lists", "npy"])
def test_booleans_are_zeros_and_ones(tmp_path, kind):
    marks = VALUES > 0
    if kind == "npy":
        np.save(tmp_path / "rows.npy", marks)
        source = FeatureSource("visual", str(tmp_path / "rows.npy"), item="what")
        dataset, _ = load(numbered(), tmp_path, features=(source,))
        assert np.array_equal(dataset.features("visual").numpy(), marks)
        return
    columns = {"e": marks.tolist()} if kind == "lists" else series(values=marks)
    assert np.array_equal(imported(tmp_path, columns)[0], marks)


def numbered():
    """Interactions with items 0 to 19."""
    table = interactions(strings=False)
    return table.set_column(1, "what", pa.array([item // 10**9 for item in table["what"].to_pylist()]))


WRONG_TEXTS = {
    "words in a series": ({"e0": ["0.5"] * 19 + ["low"], "e1": ["1"] * 20}, r"column 'e0' holds 'low', .* no number"),
    "words in lists": ({"e": ["[1, 2]"] * 19 + ["[1, x]"]}, r"column 'e' holds 'x', which is no number"),
    "no lists": ({"e": ["[1, 2]"] * 19 + ["1, 2"]}, r"column 'e' holds '1, 2', which is no list of numbers"),
    "cut by NumPy": ({"e": ["[1 2 ... 3]"] * 20}, r"column 'e' holds '\.\.\.', which is no number"),
    "lists of several widths": ({"e": ["[1, 2]"] * 19 + ["[1]"]}, "lists of 1 and 2 numbers in column 'e'"),
    "lists of lists": ({"e": ["[[1, 2], [3, 4]]"] * 20}, r"column 'e' holds '\[1', which is no number"),
}


@pytest.mark.parametrize(("columns", "sentence"), WRONG_TEXTS.values(), ids=WRONG_TEXTS)
def test_texts_that_are_no_vectors(tmp_path, columns, sentence):
    with pytest.raises(UserError, match=sentence):
        imported(tmp_path, columns, kind="csv")


def bits(values, kind, dtype):
    """The bits of numbers as bfloat16 or float16, in integers of some type."""
    halves = (
        (values.view(np.uint32) >> 16).astype(np.uint16)
        if kind == "bfloat16"
        else values.astype(np.float16).view(np.uint16)
    )
    return (halves.view(np.int16) if np.dtype(dtype).kind == "i" else halves).astype(dtype)


@pytest.mark.parametrize("float_kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("form", ["lists", "columns", "npy", "csv"])
def test_integers_that_are_the_bits_of_floats_are_no_numbers(tmp_path, float_kind, dtype, form):
    values = bits(VALUES, float_kind, dtype)
    sentence = r"may be the bits of bfloat16 or float16 numbers, so store them as float32 first: .*view\('float32'\)"
    with pytest.raises(UserError, match=sentence):
        if form == "npy":
            np.save(tmp_path / "rows.npy", values)
            load(numbered(), tmp_path, features=(FeatureSource("visual", str(tmp_path / "rows.npy"), item="what"),))
        else:
            columns = {"e": values.tolist()} if form == "lists" else series(values=values)
            columns = (
                {"e": pa.array(values.tolist(), pa.list_(pa.from_numpy_dtype(dtype)))} if form == "lists" else columns
            )
            imported(tmp_path, columns, kind="csv" if form == "csv" else "parquet")


def test_bits_of_positive_bfloat16_are_no_numbers_either(tmp_path):
    with pytest.raises(UserError, match=r"may be the bits of bfloat16"):
        imported(tmp_path, series(values=bits(np.abs(VALUES), "bfloat16", np.int64)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_whole_numbers_that_are_numbers_are_taken_with_a_note(tmp_path, dtype):
    values = np.random.default_rng(2).integers(0, 127, (20, 12)).astype(dtype)
    found, notes = imported(tmp_path, series(values=values))
    assert np.array_equal(found, values)
    assert any(f"whole numbers ({np.dtype(dtype).name}) are taken as they are" in note for note in notes)


@pytest.mark.parametrize("scale", [2_000, 30_000, 60_000])
def test_large_whole_numbers_of_either_sign_are_numbers(tmp_path, scale):
    values = np.random.default_rng(2).integers(-scale // 2, scale // 2, (20, 12))
    assert np.array_equal(imported(tmp_path, series(values=values))[0], values)


def test_rows_of_bfloat16_as_numpy_saves_them(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((20, 3), "V2"))
    with pytest.raises(UserError, match=r"may be the bits of bfloat16"):
        load(numbered(), tmp_path, features=(FeatureSource("visual", str(tmp_path / "rows.npy"), item="what"),))
