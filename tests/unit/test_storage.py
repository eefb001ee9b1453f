import pytest

from diffmm_dist import storage
from diffmm_dist.stores.memory import MemoryStore


class Vanishing:
    """A file system on which another process removes everything between two looks."""

    def _strip_protocol(self, uri):
        return uri

    def exists(self, path):
        return True

    isdir = exists

    def ls(self, path, detail):
        raise FileNotFoundError(path)

    def rm_file(self, path):
        raise FileNotFoundError(path)

    def rm(self, path, recursive):
        raise FileNotFoundError(path)


@pytest.mark.parametrize("marker", [None, "state.json"])
def test_what_another_process_removes_meanwhile_is_gone(monkeypatch, marker):
    monkeypatch.setattr(MemoryStore, "file_system", lambda self: Vanishing())
    assert storage.list_names("memory://bucket/folder") == []
    storage.remove_file("memory://bucket/file")
    storage.remove_folder("memory://bucket/folder", marker=marker)
