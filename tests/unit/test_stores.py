"""What the stores say of themselves, without any of them."""

import contextlib
import io
import subprocess
import sys

import fsspec
import pyarrow as pa
import pytest

from diffmm_dist import storage
from diffmm_dist.data.arrow_files import Promise, read_arrow
from diffmm_dist.errors import TryAgainError, UserError
from diffmm_dist.launch.ray_job import run_on_ray
from diffmm_dist.places import settle
from diffmm_dist.preparation.importers.report import Mistakes
from diffmm_dist.runs.config import load_config
from diffmm_dist.schemes import SCHEMES
from diffmm_dist.statuses import TRY_AGAIN
from diffmm_dist.stores import access
from diffmm_dist.stores.registry import store_of
from diffmm_dist.stores.store import Store
from tests.support.builders import ROOT, train_and_go_on

SHARED = [scheme for scheme in SCHEMES.values() if scheme.extra]


@pytest.mark.parametrize("scheme", SHARED, ids=lambda scheme: scheme.name)
def test_a_missing_package_is_one_sentence_that_says_how_to_get_it(scheme, monkeypatch):
    monkeypatch.setattr("diffmm_dist.stores.store.find_spec", {scheme.package: None}.get)
    place = scheme.example.lower()
    sentence = f'{scheme.name}:// needs the package {scheme.package}; pip install "diffmm-dist.{scheme.extra}."$'
    for use in (storage.exists, storage.read_bytes, storage.list_tree):
        with pytest.raises(UserError, match=sentence):
            use(place)


def error_of(kind, **attributes):
    return type("Told", (kind,), attributes)("told")


def answered(status):
    return error_of(OSError, response={"ResponseMetadata": {"HTTPStatusCode": status}})


def by_s3fs(behind):
    """An error as s3fs wraps it."""
    try:
        raise OSError("told") from behind
    except OSError as error:
        return error


PASSING = [
    error_of(OSError, code=503), error_of(OSError, response=error_of(OSError, status_code=502)),
    type("ReadError", (type("TransportError", (OSError,), {}),), {})(),
    ConnectionRefusedError(), TimeoutError(), answered(500), answered(503), answered(429), by_s3fs(answered(503)),
    error_of(OSError, status=502), error_of(OSError, status_code=504), by_s3fs(error_of(ConnectionError)),
    by_s3fs(type("EndpointConnectionError", (Exception,), {})()),
]  # fmt: skip
LASTING = [
    FileNotFoundError(), PermissionError(), ValueError(), answered(403), answered(404), by_s3fs(answered(400)),
    error_of(OSError, status="gone"), answered(501), by_s3fs(type("SSLError", (ConnectionError,), {})()),
]  # fmt: skip


@pytest.mark.parametrize(("error", "passes"), [(e, True) for e in PASSING] + [(e, False) for e in LASTING])
def test_what_may_pass_by_itself_asks_to_try_again(error, passes):
    with pytest.raises(UserError) as raised, access.explained("s3://bucket/x", "read"):
        try:
            raise error
        except (OSError, ValueError) as told:
            raise OSError("read failed") from told
    assert isinstance(raised.value, TryAgainError) == passes
    with pytest.raises(UserError) as raised, access.explained("/a/path", "read"):
        raise TimeoutError("on a disk")
    assert not isinstance(raised.value, TryAgainError)


def test_several_mistakes_ask_to_try_again_only_if_all_may_pass():
    for kinds, expected in (([TryAgainError], TryAgainError), ([TryAgainError, UserError], UserError)):
        wrong = Mistakes()
        for number, kind in enumerate(kinds):
            with wrong.collected():
                raise kind(f"mistake {number}")
        with pytest.raises(UserError, match="mistake 0") as raised:
            wrong.check()
        assert type(raised.value) is expected


def test_a_store_that_does_not_answer_is_no_damage(monkeypatch, tmp_path):
    """What the clients raise in the middle of an Arrow file is not taken for its end."""

    class Breaking(io.BytesIO):
        def read(self, size=-1):
            raise OSError("503") from answered(503)

    monkeypatch.setattr(storage, "open_input", lambda place: contextlib.nullcontext(Breaking()))
    promise = Promise([pa.schema([])], 1, None, "the manifest", "prepare the dataset again")
    with pytest.raises(TryAgainError, match="cannot read s3://bucket/x: 503; run the same command again"):
        list(read_arrow("s3://bucket/x", promise))


def test_the_status_follows_what_is_behind_a_sentence(run_cli, monkeypatch):
    """Whoever words an error anew need not know whether it may pass."""

    def fails(path):
        try:
            raise OSError("told") from answered(503)
        except OSError as error:
            raise UserError("cannot write the checkpoint") from error

    monkeypatch.setattr("diffmm_dist.data.dataset.Dataset.open", fails)
    assert run_cli("inspect", "d")[0] == TRY_AGAIN


def test_every_extra_is_one_of_the_project_s():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for scheme in SHARED:
        assert any(package.startswith(scheme.package) for package in extras[scheme.extra]), scheme.name


def test_no_client_is_loaded_before_an_address_needs_it():
    code = "import sys, diffmm_dist.storage; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"s3fs", "gcsfs", "adlfs", "huggingface_hub", "aiohttp"} & set(loaded)


def test_the_memory_of_a_process_is_no_place_for_workers(tmp_path):
    config = load_config(None, ["data.path=/d", "run.path=memory://n/x", "cluster.num_workers=2"])
    with pytest.raises(
        UserError, match="^run.path=memory://n/x is in the memory of one process, .*; give s3://, gs://"
    ):
        run_on_ray(config)


class Refused(Exception):
    """What a client raises, under its own name."""


Refused.__module__ = "gcsfs.retry"


def test_what_a_client_raises_is_one_sentence_with_what_to_do(monkeypatch):
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")

    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})

    def refused(self, path):
        raise Refused("Invalid\nCredentials, 401")

    monkeypatch.setattr(Store, "exists", refused)
    with pytest.raises(UserError) as error:
        storage.exists("gs://bucket/x")
    assert str(error.value) == (
        "cannot look at gs://bucket/x: Invalid Credentials, 401; set GOOGLE_APPLICATION_CREDENTIALS, or "
        "FSSPEC_GS_TOKEN=anon for a public bucket"
    )


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def mistaken(self, path):
        raise KeyError("x")

    monkeypatch.setattr(Store, "exists", mistaken)
    with pytest.raises(KeyError):
        storage.exists("memory://n/x")


def test_a_data_set_of_hugging_face_is_found_by_its_path():
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    store = store_of("hf://datasets/owner/name@v1/a/b.parquet")
    assert store.path("hf://datasets/owner/name@v1/a/b.parquet") == "datasets/owner/name@v1/a/b.parquet"
    assert store.uri("datasets/owner/name/x") == "hf://datasets/owner/name/x"


def test_the_memory_has_no_conditions():
    assert not access.honours_conditions("memory://n/probe")


def test_a_run_in_memory(run_cli, tmp_path, monkeypatch):
    """Data, lease, checkpoints and metrics, on a store of which nothing but fsspec is known."""
    monkeypatch.setattr("diffmm_dist.runs.lease._SETTLE_S", 0.01)
    monkeypatch.setattr("diffmm_dist.cli_options.settle_to_keep", settle)  # here several commands share a process
    place = f"memory://{tmp_path.name}"
    err = train_and_go_on(run_cli, place, tmp_path)
    assert "does not honour conditional writes" in err
    assert storage.list_names(place) == ["data", "run"]
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
