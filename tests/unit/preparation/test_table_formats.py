"""Files of every format, and of one table in different types."""

import bz2
import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers import table_formats
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import MISSING
from diffmm_dist.preparation.importers.table_formats import TextOptions


def read(uri, *columns, **more):
    table = Table(str(uri), **more)
    columns = columns or table.schema.names
    batches = list(table.batches(columns))
    wanted = pa.schema([table.schema.field(name) for name in columns])
    assert all(batch.schema.equals(wanted) for batch in batches)
    return pa.Table.from_batches(batches, schema=wanted).to_pydict()


def folder(tmp_path, *parts):
    (tmp_path / "in").mkdir()
    for number, part in enumerate(parts):
        parquet.write_table(pa.table({"x": part}), tmp_path / "in" / f"{number}.parquet")
    return tmp_path / "in"


TIMES = [datetime.datetime(2024, 1, 1, 0, 0, 0, 5000), datetime.datetime(2024, 1, 1, 0, 0, 0, 7)]
MICROSECONDS = pa.timestamp("us")
DIFFERENT = {
    "a number out of range of the first part's": ([pa.array([1], pa.int32()), pa.array([2**40])], pa.int64()),
    "a first part that is all null": ([pa.nulls(2), pa.array(["a"])], pa.string()),
    "an empty first part": ([pa.array([], pa.int8()), pa.array([300, 2**40])], pa.int64()),
    "an empty first part without a type": ([pa.array([], pa.null()), pa.array(["a"])], pa.string()),
    "ms then us": ([pa.array(TIMES[:1], pa.timestamp("ms")), pa.array(TIMES[1:], MICROSECONDS)], MICROSECONDS),
    "date then time": ([pa.array([datetime.date(2024, 1, 1)]), pa.array(TIMES, MICROSECONDS)], MICROSECONDS),
    "dictionary then string": ([pa.array(["a", None, "b"]).dictionary_encode(), pa.array(["c"])], pa.string()),
    "dictionaries of other indices": (
        [
            pa.array(["a"]).cast(pa.dictionary(pa.int8(), pa.string())),
            pa.array(["b"]).cast(pa.dictionary(pa.int32(), pa.large_string())),
        ],
        pa.string(),
    ),
    "large then small strings": ([pa.array(["a"], pa.large_string()), pa.array(["b"])], pa.string()),
    "whole numbers then floats": ([pa.array([1, 2]), pa.array([3.0, None])], pa.float64()),
    "signed then unsigned": ([pa.array([-1], pa.int8()), pa.array([255], pa.uint8())], pa.int16()),
    "lists of other widths": (
        [pa.array([[1.0]], pa.list_(pa.float32(), 1)), pa.array([[2.5]], pa.large_list(pa.float64()))],
        pa.large_list(pa.float64()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
def test_parts_in_different_types_are_one_column(tmp_path, what):
    parts, kind = DIFFERENT[what]
    place = folder(tmp_path, *parts)
    assert Table(str(place)).schema.field("x").type == kind
    expected = [value for part in parts for value in part.to_pylist()]
    if pa.types.is_timestamp(kind):
        midnight = datetime.time()
        expected = [v if isinstance(v, datetime.datetime) else datetime.datetime.combine(v, midnight) for v in expected]
    assert read(place)["x"] == expected


def test_parts_in_types_that_no_column_can_have(tmp_path):
    place = folder(tmp_path, pa.nulls(1), pa.array([1]), pa.array(["1"]))
    with pytest.raises(
        UserError, match=r"column 'x' holds int64 in .*1\.parquet and string in .*2\.parquet; convert them"
    ):
        read(place)


def test_a_part_that_lacks_a_column(tmp_path):
    place = folder(tmp_path, pa.array([1]), pa.array([2]))
    parquet.write_table(pa.table({"y": [1]}), place / "0.parquet")
    with pytest.raises(UserError, match=r"0\.parquet lacks the column 'x'"):
        read(place, "x")


def test_a_value_that_does_not_fit_the_common_type(tmp_path):
    place = folder(tmp_path, pa.array([2**63 + 5], pa.uint64()), pa.array([-1]))
    with pytest.raises(UserError, match=r"0\.parquet: column 'x' holds a value that does not fit int64"):
        read(place)
    with pytest.raises(UserError, match=r"column 'x' holds a value that does not fit double"):
        (tmp_path / "more").mkdir()
        read(folder(tmp_path / "more", pa.array([2**53 + 1]), pa.array([0.5])))


@pytest.mark.parametrize("index", [pa.int8(), pa.uint32(), pa.int64()])
@pytest.mark.parametrize("value", [pa.string(), pa.large_string(), pa.string_view()])
def test_categories_as_other_libraries_write_them(tmp_path, index, value):
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], index), pa.array(["a", "b"], value))
    for name, new in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        table = pa.table({"x": column, "y": pa.array(["p", None, "", "q"], pa.string_view())})
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
        assert read(tmp_path / f"{name}.arrow") == {"x": ["b", "a", None, "b"], "y": ["p", None, "", "q"]}


def test_damaged_arrow_is_noticed_before_it_is_used(tmp_path):
    strings = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 900_000, 5], pa.int32()).buffers()[1], pa.py_buffer(b"abcde")]
    )
    table = pa.table({"x": strings})
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"cannot read .*in\.arrow"):
        read(tmp_path / "in.arrow")


class TestCsv:
    def write(self, tmp_path, text, name="in.csv", encoding="utf-8"):
        data = text.encode(encoding)
        if name.endswith(".gz"):
            data = gzip.compress(data)
        if name.endswith(".BZ2"):
            data = bz2.compress(data)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    @pytest.mark.parametrize("name", ["in.csv", "in.CSV", "in.csv.gz", "in.CSV.BZ2"])
    def test_every_value_is_the_text_that_stands_there(self, tmp_path, name):
        place = self.write(tmp_path, 'x,y\n0042,2024-01-01\n12345678901234567890,1e5\n"a,b",true\n', name)
        assert read(place) == {"x": ["0042", "12345678901234567890", "a,b"], "y": ["2024-01-01", "1e5", "true"]}
        assert Table(str(place)).is_text

    def test_the_likely_types_are_those_of_the_beginning(self, tmp_path):
        place = self.write(tmp_path, "x,y,z\n1,2.5,a\n")
        assert Table(str(place)).likely_schema.types == [pa.int64(), pa.float64(), pa.string()]

    @pytest.mark.parametrize("word", MISSING)
    def test_words_for_missing_values_are_missing_unless_quoted(self, tmp_path, word):
        place = self.write(tmp_path, f'x,y\n{word},"{word}"\n')
        assert read(place) == {"x": [None], "y": [word]}

    def test_line_ends_in_values_and_a_byte_order_mark(self, tmp_path):
        place = self.write(tmp_path, '\ufeffx,y\r\n"a\nb",1\r\n')
        assert read(place) == {"x": ["a\nb"], "y": ["1"]}

    @pytest.mark.parametrize(("name", "delimiter"), [("in.csv", ";"), ("in.tsv", "|"), ("in.csv", "\t")])
    def test_delimiters(self, tmp_path, name, delimiter):
        place = self.write(tmp_path, f"x{delimiter}y\n1{delimiter}2\n", name)
        assert read(place, text=TextOptions(delimiter)) == {"x": ["1"], "y": ["2"]}
        with pytest.raises(UserError) as caught:
            Table(str(place)).check_columns(["y"])
        assert f"they look separated by {delimiter!r}: pass it as --delimiter" in str(caught.value)

    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "shift_jis"])
    def test_encodings(self, tmp_path, encoding):
        text = "カ" if encoding == "shift_jis" else "é"
        place = self.write(tmp_path, f"x,y\n{text},1\n", encoding=encoding)
        assert read(place, text=TextOptions(encoding=encoding)) == {"x": [text], "y": ["1"]}
        with pytest.raises(UserError, match=r"name its encoding with --encoding"):
            read(place)

    def test_options_that_cannot_be_are_all_said(self):
        with pytest.raises(UserError, match=r"--delimiter '::' must be one .*; --encoding 'utf-9' is unknown"):
            TextOptions("::", "utf-9")

    def test_parts_without_rows_or_bytes(self, tmp_path):
        for name, text in (
            ("0.csv", ""),
            ("0.csv.gz", ""),
            ("1.csv", "y,x\n"),
            ("2.csv", "x,y\n1,2\n"),
            ("3.csv", "y,x\n4,3\n"),
        ):
            self.write(tmp_path, text, name)
        assert read(tmp_path, "x", "y") == {"x": ["1", "3"], "y": ["2", "4"]}

    def test_files_that_cannot_be(self, tmp_path):
        with pytest.raises(UserError, match=r"has several columns called 'x'"):
            read(self.write(tmp_path, "x,y,x\n1,2,3\n"))
        with pytest.raises(UserError, match=r"cannot read .*Expected 2 columns, got 1"):
            read(self.write(tmp_path, "x,y\n1,2\n3\n"))
        with pytest.raises(UserError, match=r"has no column 'x'; its columns are none, since it is empty"):
            read(self.write(tmp_path, ""), "x")


class TestJsonLines:
    def write(self, tmp_path, *objects, name="in.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in objects))
        return tmp_path / name

    @pytest.mark.parametrize("name", ["in.jsonl", "in.ndjson", "in.JSON"])
    def test_values_keep_their_types(self, tmp_path, name):
        rows = [{"x": 1, "y": "0042", "z": [1, 2]}, {"y": "2024-01-01", "x": None, "z": [0.5, 1]}]
        assert read(self.write(tmp_path, *rows, name=name), "x", "y", "z") == {
            "x": [1, None], "y": ["0042", "2024-01-01"], "z": [[1, 2], [0.5, 1]],
        }  # fmt: skip

    def test_types_may_widen_from_block_to_block(self, tmp_path, monkeypatch):
        monkeypatch.setattr(table_formats, "_BLOCK_BYTES", 64)
        rows = [*({"x": n, "y": None} for n in range(50)), *({"x": n + 0.5} for n in range(50)), {"y": "a", "x": 2}]
        found = read(self.write(tmp_path, *rows), "x", "y")
        assert found["x"] == [row["x"] for row in rows]
        assert found["y"] == [None] * 100 + ["a"]

    def test_types_that_do_not_go_together(self, tmp_path, monkeypatch):
        monkeypatch.setattr(table_formats, "_BLOCK_BYTES", 16)
        with pytest.raises(
            UserError, match=r"holds int64 in the lines from 1 on and string in the lines from 4 on; convert"
        ):
            read(self.write(tmp_path, {"x": 1}, {"x": 2}, {"x": 3}, {"x": "a"}))

    def test_files_that_cannot_be(self, tmp_path):
        (tmp_path / "a.json").write_text(' [{"x": 1}]')
        with pytest.raises(UserError, match=r"is one JSON array; write one object per line instead"):
            read(tmp_path / "a.json")
        (tmp_path / "b.jsonl").write_text('{"x": 1}\n{"x": ')
        with pytest.raises(UserError, match=r"cannot read .*b\.jsonl"):
            read(tmp_path / "b.jsonl")
