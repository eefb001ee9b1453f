"""What every storage does; a test module inherits it and says where its storage is."""

import pytest

from diffmm_dist import storage
from diffmm_dist.errors import UserError


class StorageContract:
    """Tests over ``root``, the address of an empty place."""

    @pytest.fixture
    def root(self):
        raise NotImplementedError

    def test_bytes_and_json_round_trip(self, root):
        storage.write_bytes(storage.join(root, "a", "b.bin"), b"\x00\x01")
        storage.write_json(storage.join(root, "a", "c.json"), {"x": [1, 2.5]})
        assert storage.read_bytes(storage.join(root, "a", "b.bin")) == b"\x00\x01"
        assert storage.read_json(storage.join(root, "a", "c.json")) == {"x": [1, 2.5]}
        assert storage.list_names(storage.join(root, "a")) == ["b.bin", "c.json"]
        assert storage.exists(storage.join(root, "a", "b.bin"))
        assert not storage.exists(storage.join(root, "a", "d.bin"))
        assert storage.list_names(storage.join(root, "nowhere")) == []

    def test_sha256(self, root):
        storage.write_bytes(storage.join(root, "x"), b"abc")
        expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert storage.sha256(storage.join(root, "x")) == expected

    def test_ranged_reads(self, root):
        storage.write_bytes(storage.join(root, "x"), bytes(range(256)) * 100)
        with storage.open_input(storage.join(root, "x")) as file:
            file.seek(25_000)
            assert file.read(3) == bytes([25_000 % 256, 25_001 % 256, 25_002 % 256])
            assert file.seek(0, 2) == 25_600

    def test_a_missing_file_is_named(self, root):
        place = storage.join(root, "nothing")
        for read in (storage.read_bytes, storage.sha256):
            with pytest.raises(UserError, match="nothing: it does not exist"):
                read(place)

    def test_a_file_is_replaced_whole_or_not_at_all(self, root):
        place = storage.join(root, "file")
        storage.write_bytes(place, b"old")
        with pytest.raises(RuntimeError), storage.replacing_file(place) as file:
            file.write(b"half")
            raise RuntimeError
        assert storage.read_bytes(place) == b"old"
        with storage.replacing_file(place) as file:
            file.write(b"new")
        assert storage.read_bytes(place) == b"new"
        assert storage.list_names(root) == ["file"]

    def fill(self, root, content, **options):
        with storage.staged_folder(storage.join(root, "data"), marker="m.json", **options) as staging:
            storage.write_bytes(storage.join(staging, "deep", "file"), content)
            storage.write_json(storage.join(staging, "m.json"), {})

    def test_a_staged_folder_appears_complete(self, root):
        self.fill(root, b"one", force=False)
        assert storage.read_bytes(storage.join(root, "data", "deep", "file")) == b"one"
        assert storage.list_names(root) == ["data"]

    def test_a_staged_folder_replaces_only_by_force(self, root):
        self.fill(root, b"one", force=False)
        with pytest.raises(UserError, match="already exists; choose another place or pass --force"):
            self.fill(root, b"two", force=False)
        self.fill(root, b"two", force=True)
        assert storage.read_bytes(storage.join(root, "data", "deep", "file")) == b"two"
        assert storage.list_names(root) == ["data"]

    def test_a_failed_staging_leaves_the_old_folder(self, root):
        self.fill(root, b"one", force=False)
        place = storage.join(root, "data")
        with pytest.raises(RuntimeError), storage.staged_folder(place, marker="m.json", force=True) as staging:
            storage.write_bytes(storage.join(staging, "file"), b"half")
            raise RuntimeError
        assert storage.read_bytes(storage.join(place, "deep", "file")) == b"one"
        assert storage.list_names(root) == ["data"]

    def test_a_folder_that_is_not_ours_is_never_replaced(self, root):
        storage.write_bytes(storage.join(root, "data", "thesis.tex"), b"years of work")
        with pytest.raises(UserError, match="holds other files"):
            self.fill(root, b"one", force=True)
        assert storage.read_bytes(storage.join(root, "data", "thesis.tex")) == b"years of work"

    def test_folders_are_removed(self, root):
        storage.write_bytes(storage.join(root, "a", "b", "c"), b"")
        storage.remove_folder(storage.join(root, "a"))
        storage.remove_folder(storage.join(root, "never there"))
        assert storage.list_names(root) == []
