import pytest

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
    with pytest.raises(UserError, match="gs://bucket/x: only local paths and s3:// addresses are supported"):
        storage.read_bytes("gs://bucket/x")


def test_what_the_system_says_is_passed_on(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*below: File exists"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")
    with pytest.raises(UserError, match="is not valid JSON"):
        storage.read_json(str(tmp_path / "file"))
