import os

import pytest

from diffmm_dist import json_text, storage
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from diffmm_dist.runs.run_records import Identity

HOSTILE = {
    "nested deep": b"[" * 100_000,
    "maps nested deep": b'{"a":' * 100_000,
    "nested, and closed": b'{"a":' * 500 + b"1" + b"}" * 500,
    "a key twice": b'{"a": 1, "a": 2}',
    "no number": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "a number too large": b'{"a": 1e999}',
    "a whole number without end": b'{"a": ' + b"9" * 100_000 + b"}",
    "no text": bytes(range(128, 256)),
    "nothing": b"",
    "half": b'{"a": 1',
    "more behind it": b'{"a": 1} x',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json_is_one_sentence(tmp_path, kind):
    with pytest.raises(ValueError, match="."):
        json_text.parse(HOSTILE[kind])
    (tmp_path / "manifest.json").write_bytes(HOSTILE[kind])
    for read in (
        lambda: storage.read_record(str(tmp_path / "manifest.json"), Identity, remedy="remove it"),
        lambda: Dataset.open(str(tmp_path)),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert len(str(error.value)) < 600


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "huge"])
def test_a_record_is_a_regular_file_of_sensible_size(tmp_path, kind):
    path = tmp_path / "manifest.json"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 30)
    with pytest.raises(UserError) as error:
        Dataset.open(str(tmp_path))
    assert str(path) in str(error.value)
