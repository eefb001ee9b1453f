import pytest

from diffmm_dist import storage


class Vanishing:
    """A file system on which another process removes everything between two looks."""

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
    monkeypatch.setattr(storage, "_resolve", lambda uri: (Vanishing(), uri))
    assert storage.list_names("s3://bucket/folder") == []
    storage.remove_file("s3://bucket/file")
    storage.remove_folder("s3://bucket/folder", marker=marker)
