import gc
import threading

import pyarrow as pa
import pytest

from diffmm_dist import storage
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.data.stream import Reading, fetched_ahead
from diffmm_dist.errors import UserError
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
    """A dataset read as if it lay on S3; tests/integration/test_s3.py reads a real one."""

    @pytest.fixture
    def uri(self, tmp_path, monkeypatch):
        uri = synthetic_dataset(tmp_path / "d", users=300, items=120, interactions=4000)
        real = storage.is_remote
        monkeypatch.setattr(storage, "is_remote", lambda place: place.startswith(uri) or real(place))
        monkeypatch.setattr(storage, "open_input", lambda place: pa.OSFile(place))
        monkeypatch.setattr(storage, "_resolve", lambda place: (storage.fsspec.filesystem("file"), place))
        return uri

    @pytest.mark.parametrize("cached", [False, True])
    def test_the_same_data(self, uri, tmp_path, cached):
        reading = Reading(batches_ahead=2, cache=str(tmp_path / "cache") if cached else None)
        near, far = Dataset.open(uri), Dataset.open(uri, reading)
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
        with open(f"{uri}/interactions/split=test/part-00000.arrow", "ab") as file:
            file.write(b"more")
        with pytest.raises(UserError, match=r"split=test/part-00000\.arrow is not what the manifest says"):
            Dataset.open(uri, reading).interactions("test")
        assert len(list((tmp_path / "cache").iterdir())) == 1
