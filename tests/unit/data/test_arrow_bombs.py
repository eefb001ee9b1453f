"""Small Arrow files of our own form that say they are large: refused before anything is decoded."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest

from diffmm_dist.bundles import recommender
from diffmm_dist.bundles.files import FORMAT_NAME
from diffmm_dist.data.arrow_files import Promise, read_arrow
from diffmm_dist.data.arrow_messages import check_sizes, messages
from diffmm_dist.data.schema import INTERACTIONS, ROWS_PER_BATCH, feature_schema, id_schema
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.records import sealed, unsealed
from tests.support import damage

TEXT = id_schema(pa.string())


def zeros(count):
    return pa.array(np.zeros(count, np.int64))


def write(path, batches, schema, compression="zstd"):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read(path, schema, rows):
    return list(read_arrow(str(path), Promise([schema], rows, None, "manifest.json", "prepare it again")))


def padded(rows, size, schema):
    """A batch of few rows in a buffer of many bytes."""
    buffers = [None, pa.py_buffer(bytes(size))]
    return pa.RecordBatch.from_arrays([pa.Array.from_buffers(pa.int64(), rows, buffers)] * 2, schema=schema)


@pytest.fixture
def no_decoding(monkeypatch):
    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(pa.ipc, "read_record_batch", decode)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("rows", [4, 1 << 40])
def test_more_rows_than_promised_or_than_a_record_batch_has(tmp_path, no_decoding, compression, rows):
    count = 4 << 20
    batch = pa.RecordBatch.from_arrays([zeros(count)] * 2, schema=INTERACTIONS)
    write(tmp_path / "x", [batch], INTERACTIONS, compression)
    sentence = (
        r"holds 4194304 rows but manifest.json says 4" if rows == 4 else "4,194,304 rows where 65,536 are the most"
    )
    with pytest.raises(DamagedError, match=sentence):
        read(tmp_path / "x", INTERACTIONS, rows)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_text_that_its_bytes_do_not_explain(tmp_path, no_decoding, compression):
    batch = pa.RecordBatch.from_arrays([pa.array(["a" * (64 << 20)])], schema=TEXT)
    write(tmp_path / "x", [batch], TEXT, compression)
    if compression == "zstd":  # lz4 has no such ratio
        with pytest.raises(DamagedError, match="it holds a compressed buffer of 67,108,864 bytes"):
            read(tmp_path / "x", TEXT, 1)


@pytest.mark.parametrize("claimed", [1 << 40, -2, 8 + 64 + 1])
def test_a_buffer_that_claims_more_than_its_rows_need(tmp_path, no_decoding, claimed):
    write(tmp_path / "x", [pa.RecordBatch.from_arrays([zeros(100)] * 2, schema=INTERACTIONS)], INTERACTIONS)
    data = (tmp_path / "x").read_bytes()
    real = (800).to_bytes(8, "little")
    assert data.count(real) == 2
    claimed = claimed if claimed != 73 else 800 + 65
    (tmp_path / "x").write_bytes(data.replace(real, claimed.to_bytes(8, "little", signed=True)))
    with pytest.raises(DamagedError, match=r"it holds a compressed buffer of [0-9,-]+ bytes where 864 are the most"):
        read(tmp_path / "x", INTERACTIONS, 100)


def test_dictionaries_and_other_messages_are_refused(tmp_path):
    schema = pa.schema([pa.field("id", pa.dictionary(pa.int32(), pa.string()), nullable=False)])
    batch = pa.RecordBatch.from_arrays([pa.array(["a"]).dictionary_encode()], schema=schema)
    write(tmp_path / "x", [batch], schema)
    with pytest.raises(DamagedError, match="has columns"):
        read(tmp_path / "x", TEXT, 1)
    with pytest.raises(DamagedError, match="it holds something else than record batches"):
        read(tmp_path / "x", schema, 1)


@pytest.mark.parametrize(("schema", "columns"), [
    (INTERACTIONS, [zeros(ROWS_PER_BATCH)] * 2), (TEXT, [pa.array([f"user {n}" for n in range(9)])]),
    (TEXT, [pa.array([""])]), (feature_schema(3, "float16"), [
        pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(300, np.float16)), 3)]),
])  # fmt: skip
@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_what_writers_write_is_read(tmp_path, schema, columns, compression):
    whole = pa.RecordBatch.from_arrays(
        [column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema
    )
    parts = [whole.slice(0, 5), whole.slice(5), whole.slice(0, 0)]
    write(tmp_path / "x", parts, schema, compression)
    found = [batch for _, batch in read(tmp_path / "x", schema, whole.num_rows)]
    assert pa.Table.from_batches(found).equals(pa.Table.from_batches(parts))


@pytest.mark.parametrize("seed", range(300))
def test_damage_anywhere_is_one_sentence(tmp_path, seed):
    random = np.random.default_rng(seed)
    write(tmp_path / "x", [pa.RecordBatch.from_arrays([pa.array(["a", "bc"])], schema=TEXT)], TEXT)
    data = bytearray((tmp_path / "x").read_bytes())
    for place in random.integers(len(data), size=3):
        data[place] = random.integers(256)
    (tmp_path / "x").write_bytes(data[: random.integers(len(data) + 1)] if seed % 3 == 0 else data)
    sentence = damage.refusal(lambda: len(read(tmp_path / "x", TEXT, 2)), 1)
    assert sentence is None or "\n" not in sentence


def table_of(rows, name):
    return {
        "values": pa.table({"u": pa.array(np.zeros(rows, np.int8))}),
        "runs": pa.table({"u": pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array(["x"]))}),
        "nulls": pa.table({"u": pa.nulls(rows)}),
        "a text": pa.table({"u": ["a" * rows]}),
        "a text of a dictionary": pa.table({"u": pa.array(["a" * rows]).dictionary_encode()}),
    }[name]


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("name", ["values", "runs", "nulls", "a text", "a text of a dictionary"])
def test_a_table_of_anybody_that_says_it_is_large(tmp_path, new, name):
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for rows in (1000, 80 << 20):
        table = table_of(rows, name)
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, new(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        found = Table(str(tmp_path / "x.arrow")) if rows == 1000 else None
        if found is not None:
            assert sum(batch.num_rows for batch in found.batches(["u"])) == table.num_rows
    with pytest.raises(UserError, match=r"cannot read .*x\.arrow: it says that [0-9,]+ bytes hold .* rows of"):
        Table(str(tmp_path / "x.arrow"))


def test_a_bundle_says_how_many_pairs_are_seen(tmp_path, run_cli, monkeypatch):
    marker = {
        "format": FORMAT_NAME, "version": 1, "model": "m", "best_epoch": 0, "num_users": 2, "num_items": 2,
        "num_seen": 3, "embedding_dim": 1, "dataset": "", "files": {},
    }  # fmt: skip
    names = ("users.arrow", "items.arrow")
    for name in names:
        table = pa.table({"id": [1, 2], "embedding": pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1))})
        damage.write_table(tmp_path / name, table)
    damage.write_table(tmp_path / "seen.arrow", pa.table({"user": zeros(1000), "item": zeros(1000)}))
    marker["files"] = dict.fromkeys([*names, "seen.arrow"], "")
    (tmp_path / "bundle.json").write_text(json.dumps(sealed(marker)))
    damage.forge(tmp_path, "bundle.json")
    status, _, err = run_cli("recommend", tmp_path, "--users", "1")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "seen.arrow holds 1000 rows but bundle.json says 3" in err
    record = unsealed(json.loads((tmp_path / "bundle.json").read_text()))
    del record["num_seen"]
    (tmp_path / "bundle.json").write_text(json.dumps(sealed(record)))
    assert "num_seen': it is missing; export the run again" in run_cli("recommend", tmp_path, "--users", "1")[2]


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), MemoryError(),
    pa.ArrowMemoryError("malloc of size 1 failed"),
])  # fmt: skip
def test_memory_that_is_not_there_is_one_sentence(tmp_path, run_cli, monkeypatch, error):
    def read_bundle(_):
        raise error

    monkeypatch.setattr(recommender, "read_bundle", read_bundle)
    status, _, err = run_cli("recommend", tmp_path, "--users", "1")
    assert status == 1
    assert err == "error: this takes more memory than there is; use smaller data or settings, or a larger machine\n"
    monkeypatch.setattr(recommender, "read_bundle", lambda _: [][0])
    with pytest.raises(IndexError):
        run_cli("recommend", tmp_path, "--users", "1")


def test_files_that_give_views_of_their_bytes(tmp_path):
    """As those on S3 do."""

    class Views(io.BytesIO):
        def read(self, size=-1):
            return memoryview(super().read(size))

    write(tmp_path / "x", [pa.RecordBatch.from_arrays([pa.array(["a"])], schema=TEXT)], TEXT)
    file = Views((tmp_path / "x").read_bytes())
    check_sizes(file)
    schema, batch = messages(file)
    assert schema.is_schema
    assert pa.ipc.read_record_batch(batch.read(), TEXT).to_pydict() == {"id": ["a"]}
