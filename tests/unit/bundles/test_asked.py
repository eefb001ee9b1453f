"""Users asked for by a file, and recommendations written as the file's ending says."""

import csv
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from diffmm_dist.bundles import ranking
from diffmm_dist.bundles.asked import read_ids, read_new_items
from diffmm_dist.bundles.tables import file_format, recommend, write_recommendations
from diffmm_dist.errors import UserError
from tests.support.bundles import recommender

IDS = ["a,b", "c d", 'e"f', "g\\h", "ü'i", "0042", "a\u2028b"]


def texts():
    return recommender(len(IDS), ids=pa.array(IDS)).users


def numbers(count=5, ids=None):
    return recommender(count, ids=ids).users


def write_table(path, columns):
    table = pa.table(columns)
    ending = path.suffix.lower()
    if ending == ".parquet":
        pq.write_table(table, path)
    elif ending == ".csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([table.column_names, *zip(*table.to_pydict().values(), strict=True)])
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return str(path)


def test_a_line_holds_an_id_whatever_is_in_it(tmp_path):
    path = tmp_path / "users.txt"
    path.write_bytes(("\ufeff" + "\r\n".join([IDS[0], "", *IDS, "  ", IDS[1]])).encode())
    assert read_ids(str(path), texts()) == IDS
    assert texts().rows(IDS).tolist() == list(range(len(IDS)))


def test_standard_input_is_read_like_a_text_file(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"c d\na,b\n")))
    assert read_ids("-", texts()) == ["c d", "a,b"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow", "feather", "jsonl", "CSV", "Parquet"])
def test_tables_have_a_column_of_users_or_one_column(tmp_path, ending):
    several = write_table(tmp_path / f"a.{ending}", {"age": list(range(len(IDS) + 1)), "user": [*IDS, IDS[0]]})
    assert read_ids(several, texts()) == IDS
    assert read_ids(write_table(tmp_path / f"b.{ending}", {"id": IDS}), texts()) == IDS
    without = write_table(tmp_path / f"c.{ending}", {"age": [1], "id": ["a,b"]})
    with pytest.raises(UserError, match=f"c.{ending}.* has the columns age, id; call that of the users 'user'"):
        read_ids(without, texts())


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl", "csv"])
def test_whole_numbers_are_ids_of_either_kind(tmp_path, ending):
    path = write_table(tmp_path / f"a.{ending}", {"user": [104, 100, 104]})
    assert numbers().rows(read_ids(path, numbers())).tolist() == [4, 0]
    assert numbers(2, ids=pa.array(["100", "104"])).rows(read_ids(path, numbers())).tolist() == [1, 0]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
def test_missing_ids_are_blank_and_others_are_no_ids(tmp_path, ending):
    assert read_ids(write_table(tmp_path / f"a.{ending}", {"user": ["c d", None]}), texts()) == ["c d"]
    with pytest.raises(UserError, match="holds an id that does not fit"):
        read_ids(write_table(tmp_path / f"b.{ending}", {"user": [1.5]}), texts())


def test_what_can_be_no_id_is_said_with_its_file(tmp_path):
    (tmp_path / "users.txt").write_text("1.0\n2\n")
    with pytest.raises(UserError, match=r"users.txt: user ids of this bundle are whole numbers, not '1.0'"):
        read_ids(str(tmp_path / "users.txt"), numbers())


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_new_items_need_rows(tmp_path, ending):
    place = write_table(tmp_path / f"new.{ending}", {"item": [], "f0": []})
    with pytest.raises(UserError, match=f"new.{ending} names no item; give a row for each new one"):
        read_new_items({"visual": place}, texts())


def test_a_table_without_a_header_loses_no_user(tmp_path):
    (tmp_path / "users.csv").write_text("0042\nc d\n")
    with pytest.raises(UserError, match="has no line with the name of its column: the first holds the user '0042'"):
        read_ids(str(tmp_path / "users.csv"), texts())


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.txt", b"\n \n", "names no user; write an id on each line"),
        ("a.txt", b"\xff\xfe", "is no text in UTF-8"),
        ("a.parquet", b"a\n", "cannot read .*a.parquet"),
        ("a.arrow", b"a\n", "cannot read .*a.arrow"),
        ("a.jsonl", b"{", "cannot read .*a.jsonl"),
        ("a.jsonl", b"true", "cannot read .*a.jsonl"),
        ("a.csv", b'user,b\n"x', "cannot read .*a.csv"),
        ("a.csv", b"", "has the columns none"),
    ],
)
def test_files_that_list_no_users_are_one_sentence(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=part):
        read_ids(str(tmp_path / name), texts())
    with pytest.raises(UserError, match="does not exist"):
        read_ids(str(tmp_path / "nowhere.txt"), texts())


def test_many_unknown_users_are_named_shortly():
    with pytest.raises(UserError, match="no user 'no 0', .*, 'no 4' and 995 more; its ids look like 'a,b'"):
        texts().rows(["c d", *(f"no {number}" for number in range(1000))])
    with pytest.raises(UserError, match="whole numbers, not 'x y', '1.5', '9223372036854775808'"):
        numbers().rows(["100", "x y", "1.5", "9223372036854775808"])
    assert numbers(1, ids=pa.array([2**63 - 1])).rows(["9223372036854775807"]).tolist() == [0]
    with pytest.raises(UserError, match="the bundle has no user 7; its ids look like 100"):
        numbers().rows(["007"])


def read_back(path):
    ending = path.suffix.lower()
    if ending == ".csv":
        types = {"user": pa.string(), "item": pa.string(), "score": pa.float32(), "rank": pa.int32()}
        return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=types))
    if ending == ".jsonl":
        return pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])
    if ending == ".parquet":
        return pq.read_table(path)
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow", "feather", "jsonl", "CSV", "Parquet", "JSONL"])
def test_recommendations_are_written_as_the_ending_says(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(ranking, "_SCORES", 8)
    source, path = recommender(6, ids=pa.array(IDS[:6])), tmp_path / f"recs.{ending}"
    assert write_recommendations(recommend(source, np.arange(6), k=3), str(path)) == 18
    expected = pa.concat_tables(recommend(source, np.arange(6), k=3))
    found = read_back(path)
    assert found.column_names == ["user", "rank", "item", "score"]
    for name in ("user", "rank", "item"):
        assert found.column(name).to_pylist() == expected.column(name).to_pylist()
    assert found.column("score").to_pylist() == pytest.approx(expected.column("score").to_pylist())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow", "jsonl"])
def test_what_fails_on_the_way_leaves_the_old_file(tmp_path, ending):
    def failing():
        yield from recommend(recommender(), np.arange(5), k=3)
        raise RuntimeError

    path = tmp_path / f"recs.{ending}"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_recommendations(failing(), str(path))
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("out", ["recs", "recs.xlsx", "recs.csv.gz", "a.csv/recs", "csv", "s3://bucket/recs.txt"])
def test_other_endings_are_refused_with_the_list(out):
    with pytest.raises(UserError, match=r"must end in one of \.csv, \.parquet, \.arrow, \.feather, \.jsonl"):
        file_format(out)
