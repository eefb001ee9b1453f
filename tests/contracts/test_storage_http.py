import socket

import pytest

from diffmm_dist import storage
from diffmm_dist.data.dataset import Dataset
from diffmm_dist.errors import UserError
from tests.contracts.storage_contract import ReadingContract, ReplacedContract
from tests.support.builders import synthetic_dataset
from tests.support.web import web_server


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    with web_server(tmp_path / "web") as server:
        yield server


def putting(folder):
    def put(name, data):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    return put


class TestHttpStorage(ReadingContract, ReplacedContract):
    @pytest.fixture
    def root(self, web):
        return f"{web.address}/root"

    @pytest.fixture
    def put(self, tmp_path):
        return putting(tmp_path / "web" / "root")


@pytest.fixture
def file(web, tmp_path):
    putting(tmp_path / "web")("x", b"abc")
    return f"{web.address}/x"


def test_files_are_asked_for_as_they_are(web, file):
    storage.read_bytes(file)
    assert {headers["Accept-Encoding"] for headers in web.headers} == {"identity"}


def test_a_server_that_gives_no_parts_is_one_sentence(web, file, monkeypatch):
    monkeypatch.setattr("diffmm_dist.stores.blocks._BLOCK", 2)
    web.mode = "whole"
    with pytest.raises(OSError, match="2 bytes were asked for and 3 came; a server that gives no parts"):
        with storage.open_input(file) as opened:
            opened.read(2)
    assert storage.read_bytes(file) == b"abc"


def test_what_may_not_be_read_is_one_sentence(web, file):
    web.mode = "forbidden"
    for look, action in ((storage.exists, "look at"), (storage.read_bytes, "read"), (storage.is_folder, "look at")):
        with pytest.raises(UserError, match=f"^cannot {action} {file}: .*403"):
            look(file)


def test_a_server_that_is_not_there_is_one_sentence():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
    for look in (storage.exists, storage.read_bytes, storage.list_tree):
        with pytest.raises(UserError, match=f"{place}: .*[Cc]onnect"):
            look(place)


def test_a_dataset_is_read(web, tmp_path):
    synthetic_dataset(tmp_path / "web" / "d", users=30, items=20, interactions=300)
    near, far = Dataset.open(str(tmp_path / "web" / "d")), Dataset.open(f"{web.address}/d/")
    assert far.manifest.fingerprint == near.manifest.fingerprint
    assert far.interactions("train").dense().tolist() == near.interactions("train").dense().tolist()


@pytest.mark.parametrize("place", ["http://host/x", "https://host/x", "hf://datasets/owner/name/x"])
def test_nothing_is_written(place):
    scheme = place.partition("://")[0]
    for write in (
        lambda: storage.write_bytes(place, b""),
        lambda: storage.open_output(place),
        lambda: storage.remove_file(place),
        lambda: storage.remove_folder(place),
        lambda: storage.check_file(place),
        lambda: storage.check_place(place, marker="m.json", force=True),
    ):
        with pytest.raises(
            UserError, match=f"^{place}: {scheme}:// can only be read; write to a local path or to s3://"
        ):
            write()
