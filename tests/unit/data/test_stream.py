import gc
import io
import threading
import uuid

import numpy as np
import pytest

from diffmm_dist import storage
from diffmm_dist.data import schema
from diffmm_dist.data.dataset import Cursor, Dataset
from diffmm_dist.data.stream import Reading, fetched_ahead
from diffmm_dist.errors import UserError
from diffmm_dist.parallel.ranges import Range
from diffmm_dist.preparation.partitioning import partition_dataset
from diffmm_dist.stores import blocks
from diffmm_dist.stores.blocks import BlockReader
from tests.support import damage
from tests.support.builders import synthetic_dataset


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_everything_comes_in_order(size):
    assert list(fetched_ahead((number for number in range(20)), size=size)) == list(range(20))


@pytest.mark.parametrize("size", [1, 3])
def test_no_more_than_so_many_are_held(size):
    made = []

    def numbers():
        for number in range(30):
            made.append(number)
            yield number

    for used, _ in enumerate(fetched_ahead(numbers(), size=size)):
        assert len(made) <= used + 1 + size


def test_an_error_comes_after_the_items_before_it():
    def numbers():
        yield from range(3)
        raise UserError("enough")

    seen = []
    with pytest.raises(UserError, match="enough"):
        for number in fetched_ahead(numbers(), size=5):
            seen.append(number)
    assert seen == [0, 1, 2]


def test_leaving_early_closes_the_source():
    closed = threading.Event()

    def numbers():
        try:
            yield from range(1000)
        finally:
            closed.set()

    for number in fetched_ahead(numbers(), size=2):
        if number == 3:
            break
    gc.collect()
    assert closed.wait(10)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("fetch-ahead") and thread.is_alive()
    ]


class TestFromAfar:
    """A dataset on a store, the process's memory; tests/integration/test_s3.py reads a real one."""

    @pytest.fixture
    def uri(self, tmp_path):
        local, uri = tmp_path / "d", f"memory://{uuid.uuid4().hex}/d"
        synthetic_dataset(local, users=300, items=120, interactions=4000)
        for name in storage.list_tree(str(local)):
            storage.upload(str(local / name), f"{uri}/{name}")
        return uri

    @pytest.mark.parametrize("cached", [False, True])
    def test_the_same_data(self, uri, tmp_path, cached):
        reading = Reading(batches_ahead=2, cache=str(tmp_path / "cache") if cached else None)
        near, far = Dataset.open(str(tmp_path / "d")), Dataset.open(uri, reading)
        for split in ("train", "valid", "test"):
            assert far.interactions(split).dense().tolist() == near.interactions(split).dense().tolist()
        assert far.original_ids("items").to_pylist() == near.original_ids("items").to_pylist()
        assert (tmp_path / "cache").exists() == cached

    def test_the_cache_is_filled_once_and_checked(self, uri, tmp_path, monkeypatch):
        fetched = []
        download = storage.download
        monkeypatch.setattr(storage, "download", lambda *place: fetched.append(place[0]) or download(*place))
        reading = Reading(cache=str(tmp_path / "cache"))
        for _ in range(2):
            Dataset.open(uri, reading).interactions("train")
        assert fetched == [f"{uri}/interactions/split=train/part-00000.arrow"]
        names = [path.name for path in (tmp_path / "cache").iterdir()]
        assert names == [f"{Dataset.open(uri).manifest.interactions['train'][0].sha256}.arrow"]
        damaged = f"{uri}/interactions/split=test/part-00000.arrow"
        storage.write_bytes(damaged, storage.read_bytes(damaged) + b"more")
        with pytest.raises(UserError, match=r"split=test/part-00000\.arrow is damaged: its checksum"):
            Dataset.open(uri, reading).interactions("test")
        assert len(list((tmp_path / "cache").iterdir())) == 1

    @pytest.mark.parametrize("change", ["a bit", "another file's name", *sorted(damage.WHOLE.keys() - {"a folder"})])
    def test_a_copy_that_is_not_what_its_name_says_is_fetched_again(self, uri, tmp_path, caplog, change):
        reading = Reading(cache=str(tmp_path / "cache"))
        before = {split: Dataset.open(uri, reading).interactions(split).keys.tolist() for split in ("train", "valid")}
        copies = {
            split: tmp_path / "cache" / f"{Dataset.open(uri).manifest.interactions[split][0].sha256}.arrow"
            for split in before
        }
        if change == "a bit":
            damage.flip(copies["train"], 0.5)
        elif change == "another file's name":
            damage.swap(copies["train"], copies["valid"])
        else:
            damage.WHOLE[change](copies["train"])
        for split, keys in before.items():
            assert Dataset.open(uri, reading).interactions(split).keys.tolist() == keys
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [str(copies["train"]) in text for text in warned][:1] == ([] if change == "deleted" else [True])


class TestEpochs:
    @pytest.fixture
    def dataset(self, tmp_path, monkeypatch):
        """Four files per split, of several record batches each."""
        monkeypatch.setattr(schema, "ROWS_PER_BATCH", 100)
        uri = synthetic_dataset(tmp_path / "d", users=300, items=120, interactions=4000)
        partition_dataset(uri, str(tmp_path / "parts"), num_parts=4, method="random", seed=0, force=False)
        return Dataset.open(str(tmp_path / "parts"))

    @staticmethod
    def read(dataset, cursor, **options):
        return list(dataset.stream_epoch("train", cursor, seed=7, **options))

    @pytest.mark.parametrize("users", [None, Range(0, 140), Range(90, 91)])
    def test_an_epoch_is_every_interaction_once(self, dataset, users):
        read = self.read(dataset, Cursor(3), users=users)
        rows = [(user, item) for users, items, _ in read for user, item in zip(users, items, strict=True)]
        lying = [(user, item) for part in dataset.stream("train", users) for user, item in zip(*part, strict=True)]
        assert len(read) > len(dataset.manifest.interactions["train"]) or users is not None
        assert rows != lying or len(rows) < 20
        assert sorted(rows) == sorted(lying)

    def test_every_epoch_has_an_order_of_its_own(self, dataset):
        orders = [[list(items) for _, items, _ in self.read(dataset, Cursor(epoch))] for epoch in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]

    def test_it_goes_on_behind_any_cursor(self, dataset, monkeypatch):
        whole = self.read(dataset, Cursor(2))
        opened = []
        open_input = storage.open_input
        monkeypatch.setattr(storage, "open_input", lambda place: opened.append(place) or open_input(place))
        for done, (_, _, cursor) in enumerate(whole, start=1):
            opened.clear()
            rest = self.read(dataset, cursor)
            assert [items.tolist() for _, items, _ in rest] == [items.tolist() for _, items, _ in whole[done:]]
            assert [behind for *_, behind in rest] == [behind for *_, behind in whole[done:]]
            assert len(opened) == 4 - cursor.file


class TestBlocks:
    """Reading a file in blocks, against the file itself."""

    @pytest.fixture
    def content(self, monkeypatch):
        content = bytes(range(256)) * 5 + b"end"

        self.requests = []
        monkeypatch.setattr(blocks, "_BLOCK", 100)
        monkeypatch.setattr(blocks, "_BLOCKS_AHEAD", 3)
        return content

    def reader(self, content):
        def fetch(start, stop):
            self.requests.append((start, stop))
            return content[start:stop]

        return BlockReader(len(content), fetch)

    @pytest.mark.parametrize("seed", range(5))
    def test_any_reads_give_what_the_file_holds(self, content, seed):
        random = np.random.default_rng(seed)
        with self.reader(content) as reader, io.BytesIO(content) as expected:
            for _ in range(40):
                if random.random() < 0.4:
                    place = int(random.integers(len(content) + 1))
                    assert reader.seek(place) == expected.seek(place)
                size = int(random.choice([0, 1, 99, 100, 101, 350, -1]))
                assert bytes(reader.read(size)) == expected.read(size)
                assert reader.tell() == expected.tell()
            assert reader.seek(-3, io.SEEK_END) == len(content) - 3
            assert reader.seek(1, io.SEEK_CUR) == len(content) - 2
            assert bytes(reader.read()) == content[-2:]

    def test_each_block_is_fetched_once_and_few_are_held(self, content):
        with self.reader(content) as reader:
            while reader.read(30):
                assert len(reader._blocks) <= 2 + 3
        assert sorted(self.requests) == [
            (start, min(start + 100, len(content))) for start in range(0, len(content), 100)
        ]

    def test_what_a_block_raises_is_raised_where_it_is_needed(self, content):
        def refuse(start, stop):
            if start >= 200:
                raise OSError("gone")
            return content[start:stop]

        with BlockReader(len(content), refuse) as reader:
            assert bytes(reader.read(200)) == content[:200]
            with pytest.raises(OSError, match="gone"):
                reader.read(1)
