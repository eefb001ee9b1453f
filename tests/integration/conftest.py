"""What tests with real servers share."""

import uuid

import pytest

from diffmm_dist.stores import s3 as s3_client
from tests.support.builders import synthetic_dataset, write_config
from tests.support.forked import run
from tests.support.s3 import s3_server


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset whose epochs take a second."""
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", users=400, items=200, interactions=8000)


@pytest.fixture(scope="module")
def short_config(tmp_path_factory, dataset):
    """A run of four epochs."""
    return write_config(
        tmp_path_factory.mktemp("short") / "c.yaml", data={"path": dataset}, run={"path": "to be set"},
        train={"epochs": 4, "batch_size": 256},
    )  # fmt: skip


@pytest.fixture(scope="module")
def short_run(tmp_path_factory, short_config):
    """It, in one process, without Ray."""
    folder = tmp_path_factory.mktemp("local")
    run(folder / "log", "train", "--config", short_config, f"run.path={folder / 'run'}")
    return folder / "run"


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3 server on loopback."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def environment(s3):
    """The variables that point at it."""
    return s3.environment()


@pytest.fixture
def place(environment, monkeypatch):
    """A prefix of its own, which this process can reach too."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3_client.options.cache_clear()
    return f"s3://bucket/{uuid.uuid4().hex}"
