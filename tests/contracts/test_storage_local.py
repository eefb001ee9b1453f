import io
import os

import pytest

from diffmm_dist import staging as staging_module
from diffmm_dist import storage
from diffmm_dist.errors import UserError
from tests.contracts.storage_contract import StorageContract


class TestLocalStorage(StorageContract):
    @pytest.fixture
    def root(self, tmp_path):
        return str(tmp_path)


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with storage.staged_folder("data", marker="m.json", force=False) as staging:
        storage.write_json(storage.join(staging, "m.json"), {})
    storage.write_bytes("top", b"x")
    assert storage.list_names(str(tmp_path)) == ["data", "top"]


def test_other_schemes_are_refused():
    with pytest.raises(UserError, match="ftp://host/x: ftp:// is no store that is known; give a local"):
        storage.read_bytes("ftp://host/x")


def test_what_the_system_says_is_passed_on(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*below: File exists"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")
    with pytest.raises(UserError, match="is not valid JSON"):
        storage.read_json(str(tmp_path / "file"))


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "data").write_text("years of work")
    with (
        pytest.raises(UserError, match="data is a file; choose an empty or new folder"),
        storage.staged_folder(str(tmp_path / "data"), marker="m.json", force=True),
    ):
        pass
    assert (tmp_path / "data").read_text() == "years of work"


@pytest.mark.parametrize("exchanging", [True, False])
def test_if_the_new_folder_cannot_take_its_place_the_old_one_returns(tmp_path, monkeypatch, exchanging):
    """By one exchange of names, or by two renames where the file system has none."""
    place = str(tmp_path / "data")
    with storage.staged_folder(place, marker="m.json", force=False) as staging:
        storage.write_json(storage.join(staging, "m.json"), {"version": "old"})
    rename = os.rename

    def fails_for_the_new(source, target):
        if target == place and not source.endswith("-old"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    def fails_or_is_not_there(first, second):
        if exchanging:
            raise OSError(28, "No space left on device")
        return False

    monkeypatch.setattr(os, "rename", fails_for_the_new)
    monkeypatch.setattr(staging_module, "_exchange", fails_or_is_not_there)
    with (
        pytest.raises(UserError, match="No space left on device"),
        storage.staged_folder(place, marker="m.json", force=True) as staging,
    ):
        storage.write_json(storage.join(staging, "m.json"), {"version": "new"})
    assert storage.read_json(storage.join(place, "m.json")) == {"version": "old"}
    assert storage.list_names(str(tmp_path)) == ["data"]


def test_what_botocore_says_is_one_sentence(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot look at s3://no-such-bucket/x: "):
        storage.exists("s3://no-such-bucket/x")


class Breaking(io.BytesIO):
    def read(self, *_):
        raise OSError("the connection broke")


def test_a_copy_says_which_of_both_places_failed(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"no folder")
    (tmp_path / "away").symlink_to(tmp_path / "other")
    storage.download(str(tmp_path / "source"), str(tmp_path / "away" / "copy"))
    assert (tmp_path / "other" / "copy").read_bytes() == b"x"
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/file/copy: "):
        storage.download(str(tmp_path / "source"), str(tmp_path / "file" / "copy"))
    monkeypatch.setattr(storage, "open_regular", lambda path: Breaking())
    with pytest.raises(UserError, match=f"^cannot read {tmp_path}/source: the connection broke$"):
        storage.download(str(tmp_path / "source"), str(tmp_path / "other" / "copy"))
    assert (tmp_path / "other" / "copy").read_bytes() == b"x"
    assert os.listdir(tmp_path / "other") == ["copy"]
