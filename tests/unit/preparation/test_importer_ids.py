"""Ids of any type: what they are taken for, and that none is changed in silence."""

import decimal
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.features import FeatureSource
from diffmm_dist.preparation.importers.splits import SplitRule
from tests.support.tables import WRITERS, all_pairs, load, load_text

ITEMS = [f"B{number}" for number in range(10)]


def text_of(users):
    return "who,what\n" + "".join(f"{user},{item}\n" for user in users for item in ITEMS)


def table_of(users):
    """Every user with every item; users are an Arrow array."""
    places = pa.array(np.repeat(np.arange(len(users)), len(ITEMS)))
    return pa.table({"who": users.take(places), "what": ITEMS * len(users)})


def users_of(dataset):
    return dataset.original_ids("users").to_pylist()


KEPT_AS_TEXT = {
    "leading zeros": ["0042", "0043"],
    "mixed with leading zeros": ["1", "2", "03"],
    "twenty digits": ["12345678901234567890", "12345678901234567891"],
    "just beyond 64 bits": ["9223372036854775808", "1"],
    "dates": ["2024-01-01", "2024-01-02"],
    "a plus": ["+1", "2"],
    "exponents": ["1e5", "2e5"],
    "fractions": ["1.5", "2.5"],
    "more than one zero behind the point": ["1.00", "2.00"],
    "minus zero": ["-0", "0"],
    "spaces": [" 1", "2"],
    "hexadecimal": ["0x10", "0x11"],
    "underscores": ["1_000", "2_000"],
    "one that is a word": ["1", "2", "x3"],
}


@pytest.mark.parametrize("users", KEPT_AS_TEXT.values(), ids=KEPT_AS_TEXT)
def test_ids_in_csv_that_are_not_all_plain_whole_numbers_stay_as_they_stand(tmp_path, users):
    for order in (users, users[::-1]):
        dataset, notes = load_text(text_of(order), tmp_path)
        assert users_of(dataset) == sorted(users)
        unlike_numbers = users[0].startswith((" ", "0x", "1_"))
        assert unlike_numbers or any("the ids of column 'who' stay text" in note for note in notes)


def test_the_note_on_ids_that_stay_text_shows_an_example_and_the_option(tmp_path):
    _, notes = load_text(text_of(["7", "10", "0042"]), tmp_path)
    assert [note for note in notes if "--string-ids" in note and "'0042'" in note and "'who'" in note]


def test_a_note_shows_no_more_of_a_long_id_than_can_be_read(tmp_path):
    _, notes = load_text(text_of(["9" * 5000, "8"]), tmp_path)
    assert len(notes) == 1
    assert len(notes[0]) < 400


@pytest.mark.parametrize("users", [["10", "-9", "0"], ["9223372036854775807", "-9223372036854775808"]])
def test_ids_in_csv_that_are_all_whole_numbers_are_whole_numbers(tmp_path, users):
    dataset, notes = load_text(text_of(users), tmp_path)
    assert users_of(dataset) == sorted(map(int, users))
    assert not notes


def test_the_point_zero_of_pandas_is_taken_off_with_a_note(tmp_path):
    dataset, notes = load_text(text_of(["10.0", "9.0", "9"]), tmp_path)
    assert users_of(dataset) == [9, 10]
    assert any("such as '10.0' are taken as whole numbers" in note for note in notes)
    assert "dropped 10 rows that repeat a user and an item; the earliest counts" in notes


def test_a_single_late_id_decides_for_the_whole_column(tmp_path):
    rows = "".join(f"{n % 5000},{n // 5000 % 10}\n" for n in range(200_000))
    dataset, _ = load_text("who,what\n" + rows + "05,1\n", tmp_path)
    assert len(users_of(dataset)) == 5001
    assert {"5", "05"} <= set(users_of(dataset))


def test_string_ids_makes_text_of_any_id_without_asking(tmp_path):
    dataset, notes = load_text(text_of(["10", "0042"]), tmp_path, text_ids=True)
    assert (users_of(dataset), notes) == (["0042", "10"], ())
    dataset, _ = load(table_of(pa.array([10.0, 9.0])), tmp_path, text_ids=True)
    assert users_of(dataset) == ["10", "9"]


VIEW, LARGE = pa.string_view(), pa.large_string()
TYPED = {
    "int8": pa.array([3, 1], pa.int8()),
    "whole floats": pa.array([3.0, 1.0]),
    "half floats": pa.array([3.0, 1.0], pa.float16()),
    "largest exact float": pa.array([2.0**53, 1.0]),
    "decimals": pa.array([decimal.Decimal("3.00"), decimal.Decimal("1.00")]),
    "wide decimals": pa.array([decimal.Decimal(3), decimal.Decimal(1)], pa.decimal256(50, 0)),
    "dictionary of numbers": pa.array([3, 1]).dictionary_encode(),
    "string view": pa.array(["c", "a"]).cast(VIEW),
    "large string": pa.array(["c", "a"], LARGE),
    "categorical of polars": pa.DictionaryArray.from_arrays(
        pa.array([1, 0], pa.uint32()), pa.array(["a", "c"]).cast(VIEW)
    ),
    "enum of polars": pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.uint8()), pa.array(["a", "c"], LARGE)),
    "bytes": pa.array([b"c", b"a"]),
    "fixed bytes": pa.array([b"cc", b"aa"], pa.binary(2)),
    "text of digits": pa.array(["010", "9"]),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["c", "a"])),
    "uuid": pa.array([uuid.UUID(int=3).bytes, uuid.UUID(int=1).bytes], pa.uuid()),
}


def plain_value(value):
    if isinstance(value, bytes):
        return value.decode()
    return str(value) if isinstance(value, uuid.UUID) else value


@pytest.mark.parametrize("users", TYPED.values(), ids=TYPED)
def test_ids_of_any_arrow_type_arrive(tmp_path, users):
    expected = sorted(map(plain_value, users.to_pylist()))
    repeated = pa.concat_arrays([users] * len(ITEMS))
    table = pa.table({"who": repeated, "what": [item for item in ITEMS for _ in range(2)]})
    dataset, _ = load(table, tmp_path, kind="arrow")
    assert users_of(dataset) == expected
    assert len(all_pairs(dataset)) == 20


IMPOSSIBLE = {
    "a fraction": (pa.array([1.5, 2.0]), r"column 'who' holds an id that does not fit: double that is no whole number"),
    "infinity": (pa.array([np.inf, 2.0]), "does not fit: double"),
    "floats whose neighbours are the same": (pa.array([2.0**53 + 2, 1.0]), "does not fit: double"),
    "short floats whose neighbours are the same": (pa.array([2.0**24 + 2, 1.0], pa.float32()), "does not fit: float"),
    "beyond 64 bits": (pa.array([2**63, 1], pa.uint64()), "does not fit: uint64"),
    "decimal with a fraction": (pa.array([decimal.Decimal("1.5")] * 2), "does not fit: decimal"),
    "bytes that are no text": (pa.array([b"\xff", b"a"]), "binary that is not UTF-8 text"),
    "booleans": (pa.array([True, False]), "holds bool, but ids are whole numbers or strings"),
    "dates": (pa.array([1, 2], pa.date32()), "holds date32"),
    "times": (pa.array([1, 2], pa.timestamp("us")), "holds timestamp"),
    "lists": (pa.array([[1], [2]]), "holds list<"),
    "structs": (pa.array([{"a": 1}, {"a": 2}]), "holds struct<"),
}


@pytest.mark.parametrize(("users", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_ids_that_cannot_be_are_one_sentence(tmp_path, users, sentence):
    with pytest.raises(UserError, match=sentence):
        load(table_of(users), tmp_path)


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NULL", "null", "<NA>"])
def test_text_that_looks_like_a_missing_value_is_kept_with_a_note(tmp_path, word):
    dataset, notes = load(table_of(pa.array(["a", word])), tmp_path)
    assert word in users_of(dataset)
    assert any("10 rows have an id in column 'who' that looks like a missing value" in note for note in notes)


class TestFeatureTables:
    """Item ids of the interactions and of a feature table, written in different ways."""

    def both(self, tmp_path, items, feature_items, *, kinds, **more):
        users = [f"u{number}" for number in range(10)]
        rows = [(user, item) for user in users for item in items.to_pylist()]
        table = pa.table({"who": [user for user, _ in rows], "what": pa.array([item for _, item in rows], items.type)})
        values = np.arange(len(feature_items), dtype=np.float32)
        WRITERS[kinds[1]](
            pa.table({"what": feature_items, "e0": values, "e1": -values}), str(tmp_path / f"features.{kinds[1]}")
        )
        source = FeatureSource("visual", str(tmp_path / f"features.{kinds[1]}"), item="what")
        rule = SplitRule("random", 0.3, 0.3)
        return load(table, tmp_path, kind=kinds[0], features=(source,), rule=rule, **more)[0]

    TEXTS, NUMBERS = pa.array(["A1", "42", "7"]), pa.array([42, 7, 11])
    AGREEING = (
        (TEXTS, TEXTS, ("csv", "csv")),
        (TEXTS, TEXTS, ("parquet", "csv")),
        (TEXTS, TEXTS, ("csv", "parquet")),
        (NUMBERS, NUMBERS, ("csv", "csv")),
        (NUMBERS, NUMBERS, ("parquet", "csv")),
        (NUMBERS, NUMBERS, ("csv", "parquet")),
        (NUMBERS, NUMBERS.cast(pa.float64()), ("parquet", "parquet")),
    )

    @pytest.mark.parametrize(("items", "others", "kinds"), AGREEING)
    def test_text_matches_text_and_numbers_match_numbers_in_any_format(self, tmp_path, items, others, kinds):
        dataset = self.both(tmp_path, items, others, kinds=kinds)
        ids = dataset.original_ids("items").to_pylist()
        found = dict(zip(ids, dataset.features("visual")[:, 0].tolist(), strict=True))
        assert found == {item: float(number) for number, item in enumerate(others.to_pylist())}

    def test_text_ids_match_features_of_csv_that_are_all_digits(self, tmp_path):
        items, others = pa.array(["42", "7", "007"]), pa.array(["42", "7", "007", "8"])
        dataset = self.both(tmp_path, items, others.take(pa.array([2, 1, 0, 3])), kinds=("csv", "csv"))
        assert dataset.features("visual")[:, 0].tolist() == [0.0, 2.0, 1.0]

    DIFFERING = (
        (NUMBERS, NUMBERS.cast(pa.string()), ("parquet", "parquet")),
        (NUMBERS.cast(pa.string()), NUMBERS, ("parquet", "parquet")),
        (NUMBERS, NUMBERS.cast(pa.string()), ("csv", "parquet")),
        (pa.array(["42", "7", "x"]), pa.array([42, 7]), ("csv", "parquet")),
        (NUMBERS, pa.array(["42", "7", "011"]), ("csv", "csv")),
    )

    @pytest.mark.parametrize(("items", "others", "kinds"), DIFFERING)
    def test_ids_of_different_types_are_one_sentence_with_both_types_and_examples(self, tmp_path, items, others, kinds):
        with pytest.raises(UserError, match=r"are (text|whole numbers) such as .*, but .* such as .*--string-ids"):
            self.both(tmp_path, items, others, kinds=kinds)
        dataset = self.both(tmp_path, items, others, kinds=kinds, text_ids=True, without_features="zero")
        assert dataset.features("visual").any()

    def test_rows_of_an_array_and_items_that_are_text(self, tmp_path):
        np.save(tmp_path / "rows.npy", np.ones((3, 2), np.float32))
        table = table_of(pa.array(["u1", "u2"]))
        with pytest.raises(UserError, match=r"row numbers\) are whole numbers such as 0, but .* text such as 'B0'"):
            load(table, tmp_path, features=(FeatureSource("visual", str(tmp_path / "rows.npy"), item="what"),))

    def test_a_feature_table_of_which_no_item_is_known(self, tmp_path):
        for more in ({}, {"without_features": "zero"}, {"without_features": "drop"}, {"all_items": True}):
            with pytest.raises(UserError, match=r"none of the items .* \(such as 'X1'\) has an interaction .*'42'"):
                self.both(tmp_path, self.TEXTS, pa.array(["X1", "X2"]), kinds=("csv", "csv"), **more)

    def test_missing_items_and_words_for_missing_in_a_feature_table_are_noted(self, tmp_path):
        table = table_of(pa.array(["u1", "u2"]))
        features = pa.table({"what": [*ITEMS, None, "nan"], "e0": np.zeros(12), "e1": np.zeros(12)})
        parquet.write_table(features, tmp_path / "f.parquet")
        source = FeatureSource("visual", str(tmp_path / "f.parquet"), item="what")
        _, notes = load(table, tmp_path, features=(source,))
        assert "1 rows of visual features without an item are left out" in notes
        assert "1 rows of visual features are of items without interaction" in notes
        assert any("1 rows of visual features have an item that looks like a missing value" in note for note in notes)
