"""Stores other than S3, each behind a server on loopback."""

import os
import uuid

import pytest

from diffmm_dist import storage
from diffmm_dist.bundles.bundle import read_bundle
from diffmm_dist.errors import UserError
from diffmm_dist.stores import s3 as s3_client
from tests.contracts.storage_contract import (
    ConditionsContract,
    ReadingContract,
    ReplacedContract,
    StorageContract,
)
from tests.support.builders import train_and_go_on
from tests.support.s3 import FailingProxy
from tests.support.stores import azure_server, gcs_server, http_server


@pytest.fixture(scope="module")
def gcs():
    with gcs_server() as address:
        yield address


@pytest.fixture(scope="module")
def azure():
    with azure_server() as connection:
        yield connection


class TestGoogleStorage(StorageContract, ReplacedContract, ConditionsContract):
    @pytest.fixture
    def root(self, gcs):
        return f"gs://bucket/{uuid.uuid4().hex}"


class TestAzureStorage(StorageContract, ReplacedContract, ConditionsContract):
    @pytest.fixture
    def root(self, azure):
        return f"az://bucket/{uuid.uuid4().hex}"


class TestS3WithConditions(ConditionsContract):
    @pytest.fixture
    def root(self, s3, place, monkeypatch):
        with FailingProxy(s3.port, s3.folder) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
            s3_client.options.cache_clear()
            yield place
        s3_client.options.cache_clear()


class TestRcloneOverHttp(ReadingContract, ReplacedContract):
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tmp_path_factory.mktemp("web")

    @pytest.fixture(scope="class")
    def web(self, folder):
        with http_server(folder) as address:
            yield address

    @pytest.fixture
    def root(self, web):
        return f"{web}/{uuid.uuid4().hex}"

    @pytest.fixture
    def put(self, folder, root):
        def put(name, data):
            place = folder / root.rpartition("/")[2] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            written = next(clock)
            os.utime(place, (written, written))  # the server tells versions by seconds

        clock = iter(range(1_000_000_000, 2_000_000_000))
        return put


def test_a_run_on_a_store_that_is_not_s3(gcs, run_cli, tmp_path):
    """Data, run, checkpoints, lease and bundle."""
    place = f"gs://bucket/{uuid.uuid4().hex}"
    err = train_and_go_on(run_cli, place, tmp_path)
    assert "does not honour conditional writes" not in err
    assert storage.read_json(f"{place}/run/lock")["released"]
    assert run_cli("evaluate", f"{place}/run")[0] == 0
    assert run_cli("export", f"{place}/run", "--out", f"{place}/bundle")[0] == 0
    assert read_bundle(f"{place}/bundle").user_rows.array().shape == (40, 8)
    assert storage.list_names(place) == ["bundle", "data", "run"]


def test_a_bucket_that_is_not_there_is_one_sentence(gcs):
    with pytest.raises(UserError, match="^cannot write gs://no-such-bucket/x: its bucket does not exist; make it or"):
        storage.check_file("gs://no-such-bucket/x")
    with pytest.raises(UserError, match="^cannot read gs://bucket/no-such: it does not exist$"):
        storage.read_bytes("gs://bucket/no-such")


def test_a_container_that_is_not_there_is_one_sentence(azure):
    with pytest.raises(UserError, match="^cannot write az://no-such/x: The specified container does not exist[.]$"):
        storage.check_file("az://no-such/x")
