"""What every storage does; a test module inherits it and says where its storage is."""

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.arrow_tables import Table
from diffmm_dist.stores import access, blocks


class ReadingContract:
    """Tests of what can only be read.

    ``root`` is the address of an empty place. ``put`` makes a file there, as others would, from its name and bytes.
    """

    @pytest.fixture
    def root(self):
        raise NotImplementedError

    @pytest.fixture
    def put(self, root):
        raise NotImplementedError

    def test_bytes_and_json_are_read(self, root, put):
        put("a/b.bin", b"\x00\x01")
        put("a/c.json", b'{"x": [1, 2.5]}')
        assert storage.read_bytes(storage.join(root, "a", "b.bin")) == b"\x00\x01"
        assert storage.read_json(storage.join(root, "a", "c.json")) == {"x": [1, 2.5]}

    def test_what_is_there_is_listed(self, root, put):
        for name in ("a/b.bin", "a/split=x y/c.csv", "a/split=x y/deep/d.csv"):
            put(name, b"1")
        folder = storage.join(root, "a")
        assert storage.list_names(folder) == ["b.bin", "split=x y"]
        assert storage.list_names(storage.join(root, "nowhere")) == []
        assert storage.list_tree(folder) == ["b.bin", "split=x y/c.csv", "split=x y/deep/d.csv"]
        assert storage.list_tree(storage.join(root, "nowhere")) == []
        assert storage.glob(f"{folder}/split=*/*.csv") == [f"{folder}/split=x y/c.csv"]
        assert storage.glob(f"{folder}/*") == [f"{folder}/b.bin", f"{folder}/split=x y"]
        assert storage.glob(f"{folder}/*.parquet") == []
        assert storage.read_bytes(f"{folder}/split=x y/c.csv") == b"1"
        places = {"a": (True, True), "a/b.bin": (True, False), "d": (False, False)}
        for name, (is_there, is_folder) in places.items():
            place = storage.join(root, name)
            assert (storage.exists(place), storage.is_folder(place)) == (is_there, is_folder), name

    def test_sha256(self, root, put, tmp_path):
        put("x", b"abc")
        expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert storage.sha256(storage.join(root, "x")) == expected
        assert storage.download(storage.join(root, "x"), str(tmp_path / "copy")) == expected

    def test_ranged_reads(self, root, put):
        put("x", bytes(range(256)) * 100)
        put("empty", b"")
        with storage.open_input(storage.join(root, "x")) as file:
            file.seek(25_000)
            assert file.read(3) == bytes([25_000 % 256, 25_001 % 256, 25_002 % 256])
            assert file.seek(0, 2) == 25_600
        with storage.open_input(storage.join(root, "empty")) as file:
            assert file.read() == b""

    def test_a_missing_file_is_named(self, root):
        place = storage.join(root, "nothing")
        for read in (storage.read_bytes, storage.sha256):
            with pytest.raises(UserError, match="nothing: it does not exist"):
                read(place)

    def test_tables_are_read_by_arrow(self, root, put):
        sink = pa.BufferOutputStream()
        parquet.write_table(pa.table({"user": ["a", "b"], "item": [1, 2]}), sink)
        put("in/day=1/part.parquet", sink.getvalue().to_pybytes())
        put("in/day=2/part.parquet", sink.getvalue().to_pybytes())
        table = Table(storage.join(root, "in"))
        assert pa.Table.from_batches(table.batches(["day", "item"]))["item"].to_pylist() == [1, 2, 1, 2]


class ReplacedContract:
    """For stores on which a file that is read cannot be held: a test that needs blocks of 100 bytes."""

    def test_a_file_that_is_replaced_between_two_reads_is_one_error(self, root, put, monkeypatch):
        monkeypatch.setattr(blocks, "_BLOCK", 100)
        put("x", b"a" * 1000)
        with storage.open_input(storage.join(root, "x")) as file:
            assert bytes(file.read(10)) == b"a" * 10
            put("x", b"b" * 1000)
            file.seek(900)
            with pytest.raises(UserError, match="x: another object took its place while it was read; run the same"):
                file.read(10)


class StorageContract(ReadingContract):
    """Tests over ``root``, the address of an empty place that can be written."""

    @pytest.fixture
    def put(self, root):
        return lambda name, data: storage.write_bytes(storage.join(root, name), data)

    def test_json_round_trip(self, root):
        storage.write_json(storage.join(root, "c.json"), {"x": [1, 2.5]})
        assert storage.read_json(storage.join(root, "c.json")) == {"x": [1, 2.5]}

    def test_a_place_is_found_out_to_be_writable_without_leaving_anything(self, root):
        storage.check_file(storage.join(root, "file"))
        storage.check_place(storage.join(root, "data"), marker="m.json", force=False)
        assert storage.list_names(root) == []

    def test_a_file_is_copied_and_removed(self, root, tmp_path):
        (tmp_path / "here").write_bytes(b"x" * 100_000)
        storage.upload(str(tmp_path / "here"), storage.join(root, "there"))
        assert storage.sha256(storage.join(root, "there")) == storage.sha256(str(tmp_path / "here"))
        for _ in range(2):  # it may be gone
            storage.remove_file(storage.join(root, "there"))
        assert not storage.exists(storage.join(root, "there"))

    def test_a_file_is_written_from_its_start(self, root):
        with storage.open_output(storage.join(root, "a", "file")) as file:
            for _ in range(3):
                file.write(b"x" * 1000)
        assert storage.read_bytes(storage.join(root, "a", "file")) == b"x" * 3000

    def test_a_file_that_a_writer_on_top_closes_is_written(self, root):
        with storage.replacing_file(storage.join(root, "t.parquet")) as file:
            parquet.write_table(pa.table({"a": [1]}), file)
        with storage.open_input(storage.join(root, "t.parquet")) as file:
            assert parquet.read_table(file)["a"].to_pylist() == [1]

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


class ConditionsContract:
    """Writes with conditions, on which the lease of a run rests; ``root`` is the address of an empty place."""

    def test_a_file_is_made_only_where_there_is_none(self, root):
        place = storage.join(root, "a b", "lease")
        assert access.version(place) is None
        assert access.honours_conditions(storage.join(root, "probe"))
        assert not storage.exists(storage.join(root, "probe"))
        made = access.put_if(place, b"one", version=None)
        assert made == access.version(place) is not None
        assert access.put_if(place, b"two", version=None) is None
        assert storage.read_bytes(place) == b"one"

    def test_a_file_is_replaced_only_where_it_has_not_changed(self, root):
        place = storage.join(root, "lease")
        first = access.put_if(place, b"one", version=None)
        second = access.put_if(place, b"two", version=first)
        assert second not in (None, first)
        assert access.put_if(place, b"three", version=first) is None
        assert storage.read_bytes(place) == b"two"
        storage.remove_file(place)
        assert access.put_if(place, b"four", version=second) is None
        assert not storage.exists(place)
