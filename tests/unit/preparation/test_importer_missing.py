"""Missing is missing in every format and column, and is counted; times keep their order, whatever their type."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.cleaning import InteractionColumns
from diffmm_dist.preparation.importers.splits import SplitRule
from tests.support.tables import all_pairs, load, load_text, pairs

NUM_USERS, NUM_ITEMS = 4, 10
ALL = InteractionColumns("who", "what", timestamp="when", rating="stars", split="part")
ALL_BUT_SPLIT = InteractionColumns("who", "what", timestamp="when", rating="stars")
LAST = SplitRule("leave-last-out")


def rows_with(column, value, *, as_floats=False):
    """A full table, column by column, in which the first row lacks a value."""
    number = [float, int][not as_floats]
    rows = [(u, i) for u in range(NUM_USERS) for i in range(NUM_ITEMS)]
    columns = {
        "who": [number(u) for u, _ in rows],
        "what": [number(i) for _, i in rows],
        "when": [number(1000 * u + i) for u, i in rows],
        "stars": [number(5)] * len(rows),
        "part": [number(max(0, i - 7)) for _, i in rows],
    }
    columns[column][0] = value
    return columns


REASONS = {
    "who": "rows without user or item",
    "what": "rows without user or item",
    "when": "rows without a time",
    "stars": "rows with a rating below 3, or none",
    "part": "rows without a split",
}


def settings_for(column):
    if column == "when":
        return {"columns": ALL_BUT_SPLIT, "rule": LAST}
    rule = SplitRule("column", values=("0", "1", "2")) if column == "part" else SplitRule()
    columns = InteractionColumns("who", "what", rating="stars", split="part" if column == "part" else None)
    return {"columns": columns, "rule": rule, "min_rating": 3}


def check_dropped(outcome, column):
    dataset, notes = outcome
    assert f"dropped 1 {REASONS[column]}" in notes
    assert len(all_pairs(dataset)) == NUM_USERS * NUM_ITEMS - 1
    assert (0, 0) not in all_pairs(dataset)
    assert "" not in dataset.original_ids("users").to_pylist()


@pytest.mark.parametrize("column", REASONS)
@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_number_is_dropped_and_counted(tmp_path, column, kind, value):
    columns = rows_with(column, value, as_floats=value is not None)
    table = pa.table({name: pa.array(values, from_pandas=False) for name, values in columns.items()})
    check_dropped(load(table, tmp_path, kind=kind, **settings_for(column)), column)


@pytest.mark.parametrize("column", REASONS)
@pytest.mark.parametrize("text", ["", "NULL", "nan", "NaN", "None", "<NA>", '"  "'])
def test_a_missing_text_of_csv_is_dropped_and_counted(tmp_path, column, text):
    columns = rows_with(column, text)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    check_dropped(load_text("\n".join(lines) + "\n", tmp_path, **settings_for(column)), column)


@pytest.mark.parametrize("column", ["who", "what"])
@pytest.mark.parametrize("text", ["", '"  "', "nan"])
def test_a_missing_id_of_csv_is_dropped_with_string_ids_too(tmp_path, column, text):
    columns = rows_with(column, text)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    dataset, notes = load_text("\n".join(lines) + "\n", tmp_path, text_ids=True)
    assert "dropped 1 rows without user or item" in notes
    assert dataset.original_ids("users").to_pylist() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("text", ["", "  ", None])
def test_a_missing_text_of_a_typed_table_is_dropped_and_counted(tmp_path, text):
    for column in REASONS:
        columns = {name: [str(value) for value in values] for name, values in rows_with(column, 0).items()}
        columns[column][0] = text
        dataset, notes = load(pa.table(columns), tmp_path, **settings_for(column))
        assert f"dropped 1 {REASONS[column]}" in notes
        assert len(all_pairs(dataset)) == NUM_USERS * NUM_ITEMS - 1


def test_every_reason_is_counted_by_itself_and_a_row_once(tmp_path):
    columns = rows_with("who", None)
    columns["when"][0] = None
    columns["when"][5] = columns["stars"][6] = columns["what"][7] = None
    _, notes = load(pa.table(columns), tmp_path, columns=ALL_BUT_SPLIT, rule=LAST, min_rating=3)
    assert notes[:3] == (
        "dropped 2 rows without user or item",
        "dropped 1 rows without a time",
        "dropped 1 rows with a rating below 3, or none",
    )


def test_what_is_not_needed_may_be_missing(tmp_path):
    columns = rows_with("when", None)
    columns["stars"] = [None] * len(columns["stars"])
    _, notes = load(pa.table(columns), tmp_path, columns=ALL_BUT_SPLIT)
    assert not notes


def test_where_all_rows_lack_something_the_error_says_what(tmp_path):
    columns = rows_with("when", None)
    columns["when"] = [None] * len(columns["when"])
    with pytest.raises(UserError, match=r"no interaction to import; .*dropped 40 rows without a time"):
        load(pa.table(columns), tmp_path, columns=ALL_BUT_SPLIT, rule=LAST)


SPLITS = {
    "floats": (pa.array([0.0, 1.0, 2.0]), ("0", "1", "2")),
    "bytes of dictionary": (pa.array([0, 1, 2], pa.uint8()).dictionary_encode(), ("0", "1", "2")),
    "booleans": (pa.array([False, False, True]), ("False", "none", "True")),
    "categorical": (pa.array(["a", "b", "c"]).dictionary_encode(), ("a", "b", "c")),
    "decimals": (pa.array([decimal.Decimal("0.0"), decimal.Decimal("1.0"), decimal.Decimal("2.0")]), ("0", "1", "2")),
}


@pytest.mark.parametrize(("values", "names"), SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_split_column_of_any_type(tmp_path, values, names, kind):
    places = [max(0, i - 7) for _ in range(NUM_USERS) for i in range(NUM_ITEMS)]
    table = pa.table(rows_with("who", 0)).set_column(4, "part", values.take(pa.array(places)))
    dataset, _ = load(table, tmp_path, kind=kind, columns=ALL, rule=SplitRule("column", values=names))
    assert sorted(pairs(dataset, "test")) == [(user, 9) for user in range(NUM_USERS)]
    assert len(pairs(dataset, "valid")) == (0 if "none" in names else NUM_USERS)


# What a user sees last, in times whose order is easily lost.
BIG = 2**60
MOMENT = datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)
TIMES = {
    "nanoseconds": lambda n: pa.array(BIG + n),
    "unsigned nanoseconds": lambda n: pa.array(BIG + n, pa.uint64()),
    "timestamps of nanoseconds": lambda n: pa.array(BIG + n, pa.timestamp("ns")),
    "timestamps with a zone": lambda n: pa.array(BIG + n, pa.timestamp("ns", "Europe/Berlin")),
    "timestamps far away": lambda n: pa.array(2**52 + n, pa.timestamp("s")),
    "dates": lambda n: pa.array(n.astype(np.int32), pa.date32()),
    "long dates": lambda n: pa.array(n * 86_400_000, pa.date64()),
    "floats": lambda n: pa.array(n / 7),
    "decimals": lambda n: pa.array([decimal.Decimal(2**60) + decimal.Decimal(int(k)) / 1000 for k in n]),
    "text of nanoseconds": lambda n: pa.array([str(BIG + k) for k in n]),
    "text of decimals": lambda n: pa.array([f"1700000000.{k:09}" for k in n]),
    "text beyond 64 bits": lambda n: pa.array([str(2**70 + int(k)) for k in n]),
    "text of floats": lambda n: pa.array([f"{k / 7:e}" for k in n]),
    "text of numbers of any form": lambda n: pa.array([f"{k}.0" if k % 2 else str(k) for k in n]),
    "ISO days": lambda n: pa.array([(MOMENT + datetime.timedelta(days=int(k))).date().isoformat() for k in n]),
    "ISO with nanoseconds": lambda n: pa.array([f"2024-05-01T10:00:00.{k:09}Z" for k in n]),
    "ISO with a space": lambda n: pa.array([f"2024-05-01 10:{k:02}" for k in n]),
    "ISO with offsets": lambda n: pa.array([iso_with_offset(int(k)) for k in n]),
    "ISO beyond what 64 bits of nanoseconds hold": lambda n: pa.array([f"{9999 - 400 + k}-01-01" for k in n]),
    "dictionary of text": lambda n: pa.array([f"2024-05-01T10:00:00.{k:03}" for k in n]).dictionary_encode(),
}  # fmt: skip


def iso_with_offset(number):
    """The same moments in different zones, so that the order of the texts is another one."""
    zone = datetime.timezone(datetime.timedelta(hours=(number * 5) % 23 - 11, minutes=30))
    return (MOMENT + datetime.timedelta(minutes=number)).astimezone(zone).isoformat()


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_times_of_any_type_keep_their_order(tmp_path, times, kind):
    if kind == "csv" and times in (TIMES["timestamps far away"], TIMES["timestamps with a zone"]):
        pytest.skip("Arrow's CSV writer cannot write these")
    numbers = np.random.default_rng(3).permutation(NUM_USERS * NUM_ITEMS)
    columns = rows_with("who", 0)
    table = pa.table(columns | {"when": times(numbers)})
    dataset, notes = load(table, tmp_path, kind=kind, columns=ALL_BUT_SPLIT, rule=LAST)
    by_user = numbers.reshape(NUM_USERS, NUM_ITEMS)
    assert dict(pairs(dataset, "test")) == dict(enumerate(by_user.argmax(axis=1).tolist()))
    assert dict(pairs(dataset, "valid")) == dict(enumerate(by_user.argsort(axis=1)[:, -2].tolist()))
    assert not notes


FORMATS = {
    "%d.%m.%Y %H:%M": lambda moment: moment.strftime("%d.%m.%Y %H:%M"),
    "%m/%d/%y %I:%M %p": lambda moment: moment.strftime("%m/%d/%y %I:%M %p"),
    "%Y%m%d%H%M": lambda moment: moment.strftime("%Y%m%d%H%M"),
    "%H:%M:%S.%f on %d %b %Y": lambda moment: moment.strftime("%H:%M:%S.%f on %d %b %Y"),
    "%d.%m.%Y %H:%M %z": lambda moment: moment.astimezone(
        datetime.timezone(datetime.timedelta(hours=moment.minute % 9 - 4))
    ).strftime("%d.%m.%Y %H:%M %z"),
    "it's %d.%m.%Y %H:%M": lambda moment: moment.strftime("it's %d.%m.%Y %H:%M"),
}


@pytest.mark.parametrize(("form", "written"), FORMATS.items(), ids=FORMATS)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_times_in_a_form_of_their_own(tmp_path, form, written, kind):
    numbers = np.random.default_rng(3).permutation(NUM_USERS * NUM_ITEMS)
    texts = [written(MOMENT + datetime.timedelta(minutes=1427 * int(number))) for number in numbers]
    table = pa.table(rows_with("who", 0) | {"when": texts})
    dataset, _ = load(table, tmp_path, kind=kind, columns=ALL_BUT_SPLIT, rule=LAST, timestamp_format=form)
    expected = numbers.reshape(NUM_USERS, NUM_ITEMS).argmax(axis=1)
    assert dict(pairs(dataset, "test")) == dict(enumerate(expected.tolist()))


WRONG_TIMES = {
    "words": (["soon"], {}, r"column 'when' holds 'soon', which are not known times; .*--timestamp-format"),
    "one word among numbers": (["1", "2", "soon"], {}, "'soon', which are not whole numbers like most others"),
    "one word among ISO times": (["2024-01-01", "2024-01-02", "soon"], {}, r"holds 'soon', .* ISO 8601 like most"),
    "days that do not exist": (["2024-01-01", "2024-02-30"], {}, "'2024-02-30', which are not times of ISO 8601"),
    "infinite text": (["1.5", "2.5", "inf"], {}, r"holds 'inf'"),
    "numbers and ISO times": (["1", "2", "2024-01-01"], {}, r"holds '2024-01-01', .* like most others"),
    "zones here and there": (["2024-01-01T00:00Z", "2024-01-01T00:00"], {}, "mixes times with a zone and without"),
    "another form": (["01.02.2024", "2024"], {"timestamp_format": "%d.%m.%Y"}, r"'2024', .* of the form %d\.%m\.%Y"),
    "no form": (["1"], {"timestamp_format": "%Q"}, r"--timestamp-format %Q has an unknown part %Q"),
    "a form of numbers": (np.arange(2), {"timestamp_format": "%Y"}, "is no text, so --timestamp-format does not apply"),
    "infinite numbers": ([1.0, float("inf")], {}, "holds an infinite time"),
    "beyond 64 bits": (np.array([2**63, 1], np.uint64), {}, "holds a time that does not fit"),
    "times of day": (pa.array([1, 2], pa.time64("us")), {}, r"holds time64\[us\], but numbers or times are needed"),
    "booleans": ([True, False], {}, "holds bool"),
}  # fmt: skip


@pytest.mark.parametrize(("times", "more", "sentence"), WRONG_TIMES.values(), ids=WRONG_TIMES)
def test_times_that_cannot_be_read_are_one_sentence(tmp_path, times, more, sentence):
    values = pa.array(times)
    places = pa.array([number % len(values) for number in range(NUM_USERS * NUM_ITEMS)])
    table = pa.table(rows_with("who", 0)).set_column(2, "when", values.take(places))
    with pytest.raises(UserError, match=sentence):
        load(table, tmp_path, columns=ALL_BUT_SPLIT, rule=LAST, **more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ratings", [["5", "good"], [True, False]])
def test_ratings_that_are_no_numbers_are_one_sentence(tmp_path, ratings):
    table = pa.table(rows_with("who", 0)).set_column(3, "stars", pa.array(ratings * 20))
    with pytest.raises(UserError, match=r"column 'stars' holds ('good'|bool), but numbers are needed"):
        load(table, tmp_path, columns=ALL_BUT_SPLIT, min_rating=3)
