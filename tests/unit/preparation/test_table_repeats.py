"""Small files that hold a long value once and repeat it in many rows: refused, or read a few rows at a time."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers import parquet_table, repeats
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.columns import plain

ROWS = 20_000
LONG = "x" * 1_000_000
SENTENCE = r"in\.(parquet|arrow): 20,000 rows repeat long values, 20,\d{3},\d{3},\d{3} bytes in all, which is too much"


def repeated(values):
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(ROWS, np.int32)), values)


def views(kind):
    few = pa.array([LONG if kind == pa.string_view() else LONG.encode()], kind)
    one = few.buffers()
    return pa.Array.from_buffers(kind, ROWS, [None, pa.py_buffer(one[1].to_pybytes() * ROWS), *one[2:]])


def list_views():
    numbers = pa.array(np.zeros(125_000))
    places = [pa.array(np.full(ROWS, number, np.int32)) for number in (0, len(numbers))]
    return pa.ListViewArray.from_arrays(*places, numbers)


REPEATS = {
    "dictionary": lambda: repeated(pa.array([LONG])),
    "large dictionary": lambda: repeated(pa.array([LONG], pa.large_string())),
    "bytes": lambda: repeated(pa.array([LONG.encode()])),
    "bytes of one width": lambda: repeated(pa.array([LONG.encode()], pa.binary(len(LONG)))),
    "lists": lambda: repeated(pa.array([np.zeros(125_000)])),
    "lists of one width": lambda: repeated(pa.array([np.zeros(125_000)], pa.list_(pa.float64(), 125_000))),
    "runs": lambda: pa.RunEndEncodedArray.from_arrays(pa.array([ROWS], pa.int32()), pa.array([LONG])),
    "views of text": lambda: views(pa.string_view()),
    "views of bytes": lambda: views(pa.binary_view()),
    "views of lists": list_views,
}


def write(folder, column, ending, **options):
    table = pa.table({"u": column})
    path = folder / f"in.{ending}"
    if ending == "parquet":
        parquet.write_table(table, path, compression="zstd", store_schema=False, **options)
    else:
        with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as sink:
            sink.write_table(table)
    return str(path)


def rows_of(path):
    return sum(batch.num_rows for batch in Table(path).batches(["u"]))


@pytest.mark.parametrize("what", REPEATS)
def test_a_long_value_in_many_rows(tmp_path, what):
    path = write(tmp_path, REPEATS[what](), "arrow")
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=SENTENCE):
        rows_of(path)
    assert pa.total_allocated_bytes() - before < 100 << 20


@pytest.mark.parametrize("what", ["dictionary", "bytes"])
def test_a_long_text_in_many_rows_of_parquet(tmp_path, what):
    path = write(tmp_path, REPEATS[what](), "parquet")
    with pytest.raises(UserError, match=SENTENCE):
        rows_of(path)


def test_long_bytes_in_many_rows_of_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_table, "_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(parquet_table, "_MOST_TIMES", 1 << 10)
    path = write(tmp_path, pa.array([b"x" * 1000] * 5000, pa.binary(1000)), "parquet")
    with pytest.raises(
        UserError, match=r"in\.parquet: 5,000,000 bytes of values in [0-9,]+ bytes of the file are too much"
    ):
        rows_of(path)


def test_zeros_in_many_lists_of_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_table, "_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(parquet_table, "_MOST_TIMES", 1 << 10)
    path = write(tmp_path, pa.array(list(np.zeros((1000, 1000)))), "parquet")
    with pytest.raises(UserError, match=r"in\.parquet: 8,\d{3},\d{3} bytes of values in"):
        rows_of(path)


def test_wide_lists_come_in_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_table, "_BATCH_BYTES", 80_000)
    path = write(tmp_path, pa.array(list(np.random.default_rng(0).random((300, 100)))), "parquet", row_group_size=150)
    batches = list(Table(path).batches(["u"]))
    assert max(batch.num_rows for batch in batches) <= 100
    assert sum(batch.num_rows for batch in batches) == 300


def test_what_is_large_itself_is_read(monkeypatch):
    monkeypatch.setattr(repeats, "_MOST_BYTES", 1000)
    texts = pa.array([f"{number:0100d}" for number in range(50)] + [None])
    assert plain(texts.dictionary_encode()).equals(texts)
    assert plain(texts.cast(pa.string_view())).equals(texts)


def test_a_name_with_a_dot_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_table, "_BATCH_BYTES", 800)
    parquet.write_table(pa.table({"a.b": [[1.0] * 10] * 1000}), tmp_path / "in.parquet")
    assert max(batch.num_rows for batch in Table(str(tmp_path / "in.parquet")).batches(["a.b"])) == 10
