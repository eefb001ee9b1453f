"""Random damage to one of each kind of file: a result or one sentence, never anything else.

Bounded and the same every time here; ``make fuzz`` tries more, and others each time (DIFFMM_FUZZ of each kind).
"""

import json
import os
import pickle
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.jsonl import JsonlRecorder, read_jsonl
from diffmm_dist.preparation.importers.arrays import open_rows
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.preparation.importers.sparse_pickle import read_pattern
from diffmm_dist.runs.checkpoint_reading import State
from diffmm_dist.runs.config import config_from_text, load_config
from diffmm_dist.runs.run_records import Result
from diffmm_dist.safe_text import message, refuse_secrets, without_secrets
from diffmm_dist.storage import read_record
from tests.support.builders import ROOT, RUN_ID, synthetic_dataset

LONGER = int(os.environ.get("DIFFMM_FUZZ", "0"))
FUZZ = settings(
    max_examples=LONGER or 40,
    derandomize=not LONGER,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def damage(draw):
    """Ways to change bytes: each takes them and returns others."""
    kind = draw(st.sampled_from(["flip", "put", "cut", "drop", "repeat", "insert", "swap"]))
    start, length = draw(st.integers(0, 2**16)), draw(st.integers(1, 64))
    value = draw(st.one_of(st.binary(min_size=1, max_size=16), st.sampled_from(EVIL)))

    def change(data):
        if not data:
            return data
        at = start % len(data)
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ (1 << length % 8)]) + data[at + 1 :]
        if kind == "put":
            return data[:at] + value + data[at + len(value) :]
        if kind == "cut":
            return data[:at]
        if kind == "drop":
            return data[:at] + data[at + length :]
        if kind == "repeat":
            return data[:at] + data[at : at + length] * (length + 1) + data[at + length :]
        if kind == "insert":
            return data[:at] + value + data[at:]
        return data[:at] + data[at + length : at + 2 * length] + data[at : at + length] + data[at + 2 * length :]

    return change


EVIL = [
    b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"[" * 300, b"{" * 300, b"NaN", b"1e999", b"-1", b"../" * 9,
    b"null", b"99999999999999999999", b"'", b'"', b"&a", b"*a", b"<<: ", b"!!python/object:x ", b"\xf0\x9f\x92\xa9",
    b"s3://a:b@c", b"\x1b[2J",
]  # fmt: skip
DAMAGES = st.lists(damage(), min_size=1, max_size=4)


def either(read):
    """Run something: nothing but a ``UserError`` may come out of it, one short line when it is shown."""
    try:
        read()
    except UserError as error:
        shown = message(str(error))
        assert "\n" not in shown
        assert len(shown) < 5_000


def matrix_bytes(protocol):
    matrix = sp.csr_matrix(np.eye(9, 7, dtype=np.int8))
    return pickle.dumps(matrix, protocol=protocol)


def written(folder, name, write):
    write(folder / name)
    return (folder / name).read_bytes()


def record(path):
    recorder = JsonlRecorder(path, run=RUN_ID)
    for epoch in range(2):
        recorder.scalars({"a/b": 1.5}, epoch=epoch)
    recorder.close()


STATE = {
    "cursor": {"epoch": 1, "phase": 0, "step": 0, "global_step": 3},
    "best": {"epoch": 0, "metrics": {"recall@20": 0.5}, "checkpoint": "epoch-00001"},
    "sums": {},
    "scalars": {"a/b": 1.5},
    "seconds": {},
    "notes": [],
    "run": RUN_ID,
    "writer": 1,
    "index": "0" * 64,
}
RESULT = {
    "run": RUN_ID,
    "protocol": "validation",
    "seed": 1,
    "best_epoch": 0,
    "epochs": 1,
    "valid": {"recall@20": 0.1},
    "test": {},
    "seconds_per_epoch": 1.0,
    "seconds_per_phase": {},
    "peak_rss_gib": 1.0,
    "config": {"model": {"name": "x"}},
}


def read_table(path):
    table = Table(str(path))
    for batch in table.batches(table.schema.names):
        batch.to_pylist()


def read_config_of_a_run(path):
    return config_from_text(path.read_text(errors="replace"), source="r.yaml")


def read_array(path):
    return np.array(open_rows(str(path), kinds="fiu", needed="rows"))


READERS = {
    "configuration": ("c.yaml", load_config),
    "configuration of a run": ("r.yaml", read_config_of_a_run),
    "manifest": ("manifest.json", lambda path: Dataset.open(str(path.parent))),
    "state": ("state.json", lambda path: read_record(str(path), State, remedy="remove it")),
    "result": ("result.json", lambda path: read_record(str(path), Result, remedy="remove it")),
    "metrics": ("metrics.jsonl", lambda path: read_jsonl(path, run=RUN_ID)),
    "pickle": ("m.pkl", lambda path: read_pattern(str(path), "m.pkl")),
    "old pickle": ("o.pkl", lambda path: read_pattern(str(path), "o.pkl")),
    "array": ("a.npy", read_array),
    "Parquet table": ("t.parquet", read_table),
    "CSV table": ("t.csv", read_table),
    "JSON lines": ("t.jsonl", read_table),
    "Arrow table": ("t.arrow", read_table),
}


def contents(folder):
    """The bytes of one of each kind of file."""
    synthetic_dataset(folder / "d", users=9, items=8, interactions=30, modalities={"visual": 2})
    rows = pa.table({"u": [1, 2, 3], "i": ["a", "b", "ü"]})
    config = (ROOT / "configs" / "demo.yaml").read_bytes()
    with pa.ipc.new_file(folder / "t.arrow", rows.schema) as writer:
        writer.write_table(rows)
    return {
        "configuration": config,
        "configuration of a run": config,
        "manifest": (folder / "d" / "manifest.json").read_bytes(),
        "state": json.dumps(STATE).encode(),
        "result": json.dumps(RESULT).encode(),
        "metrics": written(folder, "metrics.jsonl", record),
        "pickle": matrix_bytes(5),
        "old pickle": matrix_bytes(0),
        "array": written(folder, "a.npy", lambda path: np.save(path, np.ones((9, 5)))),
        "Parquet table": written(folder, "t.parquet", lambda path: parquet.write_table(rows, path)),
        "CSV table": b"u,i\n1,a\n2,b\n3,\xc3\xbc\n",
        "JSON lines": b'{"u": 1, "i": "a"}\n{"u": 2, "i": "b"}\n',
        "Arrow table": (folder / "t.arrow").read_bytes(),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return contents(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", READERS)
def test_random_damage_is_a_result_or_one_sentence(files, tmp_path, kind):
    data, (name, read) = files[kind], READERS[kind]
    path = tmp_path / name

    @FUZZ
    @given(DAMAGES)
    def damaged(changes):
        changed = data
        for change in changes:
            changed = change(changed)
        path.write_bytes(changed)
        either(lambda: read(path))

    path.write_bytes(data)
    read(path)
    damaged()


@FUZZ
@given(st.text(max_size=60))
def test_any_text_as_a_setting_is_a_configuration_or_one_sentence(text):
    for override in (text, f"run.path={text}", f"model.{text}", f"data.modalities={text}"):
        either(lambda override=override: load_config(None, [override]))


@FUZZ
@given(st.text(max_size=30), st.text("AKI019", min_size=1), st.text("abcXYZ/+019=", min_size=1), st.text(max_size=9))
def test_a_login_in_an_address_is_never_shown(before, key, secret, behind):
    for login in (f"{key}:{secret}", quote(f"{key}:{secret}", safe="")):
        text = f"{before} s3://{login}@bucket{behind}"
        assert f"{login}@" not in without_secrets(text)
        with pytest.raises(UserError) as error:
            refuse_secrets(text)
        assert f"{login}@" not in str(error.value)


@FUZZ
@given(st.text())
def test_what_is_shown_is_seen(text):
    assert all(character.isprintable() for character in message(text))
