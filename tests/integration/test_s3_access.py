"""The ways to S3 that docs/storage.md names, each tried with servers on loopback."""

import pickle
import shutil
import subprocess

import fsspec
import pytest

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.stores import access
from diffmm_dist.stores import s3 as s3_client
from tests.support.processes import free_port, served
from tests.support.recorder import Recorder, Roles
from tests.support.s3 import KEY, RCLONE, SECRET
from tests.support.web import running

NAMES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
         "http_proxy", "https_proxy", "no_proxy", "AWS_CA_BUNDLE", "AWS_PROFILE")  # fmt: skip


@pytest.fixture
def client(place, monkeypatch, tmp_path):
    """Sets variables and makes a client anew."""

    def make(options=None, **values):
        for name, value in values.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf, options or {})
        s3_client.options.cache_clear()

    for name in NAMES[3:]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    yield make
    s3_client.options.cache_clear()


@pytest.fixture
def recorder(s3):
    with running(Recorder(s3.port)) as server:
        yield server


def everything(root):
    """Do all that a run does with S3."""
    with storage.staged_folder(f"{root}/data", marker="m.json", force=False) as staging:
        storage.write_json(f"{staging}/m.json", {})
        with storage.open_output(f"{staging}/large") as file:
            for _ in range(6):
                file.write(b"x" * (2 << 20))
    with storage.open_input(f"{root}/data/large") as file:
        assert file.read(3) == b"xxx"
    assert storage.sha256(f"{root}/data/m.json") == storage.sha256(f"{root}/data/m.json")
    access.put_if(f"{root}/lease", b"1", version=None)
    assert access.version(f"{root}/lease") is not None
    assert storage.list_tree(root) == ["data/large", "data/m.json", "lease"]
    storage.remove_folder(root)
    assert not storage.exists(root)


def test_requester_pays(client, recorder, place):
    in_parts = {"FSSPEC_S3_DEFAULT_BLOCK_SIZE": str(5 << 20)}
    client({"FSSPEC_S3_REQUESTER_PAYS": "true"} | in_parts, AWS_ENDPOINT_URL=recorder.address)
    everything(place)
    assert {request.method for request in recorder.requests} == {"GET", "HEAD", "PUT", "POST", "DELETE"}
    assert any("partNumber=2" in request.target for request in recorder.requests)
    lacking = [
        (request.method, request.target)
        for request in recorder.requests
        if request.headers.get("x-amz-request-payer") != "requester"
    ]
    assert lacking == []


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A server that asks nobody for a key, and its folder."""
    folder, port = tmp_path_factory.mktemp("public"), free_port()
    (folder / "bucket").mkdir()
    (folder / "bucket" / "x").write_bytes(b"abc")
    with served([RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", str(folder)], port):
        yield port


def test_a_public_bucket_without_credentials(client, public):
    with running(Recorder(public)) as recorder:
        nothing = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
        client(AWS_ENDPOINT_URL=recorder.address, **nothing)
        with pytest.raises(UserError, match="or FSSPEC_S3_ANON=true for a public bucket$"):
            storage.read_bytes("s3://bucket/x")
        assert recorder.requests == []
        client({"FSSPEC_S3_ANON": "true"})
        assert storage.read_bytes("s3://bucket/x") == b"abc"
        assert storage.list_names("s3://bucket") == ["x"]
        with storage.open_input("s3://bucket/x") as file:
            assert file.read() == b"abc"
        assert not any("authorization" in request.headers for request in recorder.requests)


PATH_STYLES = {
    "of the profile": ("[default]\ns3 =\n  addressing_style = path\n", {}),
    "of fsspec": ("", {"FSSPEC_S3": '{"config_kwargs": {"s3": {"addressing_style": "path"}}}'}),
}


@pytest.mark.parametrize("style", PATH_STYLES)
def test_path_style_through_a_proxy(client, recorder, place, tmp_path, style):
    """The server's name is known to the proxy alone."""
    settings, options = PATH_STYLES[style]
    (tmp_path / "config").write_text(settings)
    client(options, AWS_ENDPOINT_URL="http://s3.example.test", HTTP_PROXY=recorder.address)
    storage.write_bytes(f"{place}/x", b"abc")
    assert storage.read_bytes(f"{place}/x") == b"abc"
    prefix = place.replace("s3://", "http://s3.example.test/")
    assert {request.target.partition("?")[0] for request in recorder.requests} == {f"{prefix}/x"}


def test_a_server_that_needs_no_proxy(client, recorder, place):
    client(HTTP_PROXY=recorder.address, NO_PROXY="127.0.0.1")
    storage.write_bytes(f"{place}/x", b"abc")
    assert recorder.requests == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_of_ones_own(client, tmp_path):
    port, certificate, key = free_port(), tmp_path / "ca.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    command = [RCLONE, "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}", "--cert",
               certificate, "--key", key, tmp_path / "s3"]  # fmt: skip
    with served(command, port):
        client(AWS_ENDPOINT_URL=f"https://127.0.0.1:{port}", AWS_MAX_ATTEMPTS="1")
        with pytest.raises(UserError, match="^cannot look at s3://bucket/x: .*; set AWS_CA_BUNDLE to the file"):
            storage.exists("s3://bucket/x")
        client(AWS_CA_BUNDLE=str(certificate))
        storage.write_bytes("s3://bucket/x", b"abc")
        assert storage.read_bytes("s3://bucket/x") == b"abc"


@pytest.fixture
def roles():
    with running(Roles(KEY, SECRET)) as server:
        yield server


ROLES = {
    "web identity": {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/trainer", "AWS_WEB_IDENTITY_TOKEN_FILE": "{token}",
                     "AWS_ENDPOINT_URL_STS": "{address}"},
    "pod identity": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "{address}/v1/credentials",
                     "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "{token}"},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROLES)
def test_the_role_of_a_service_account(client, recorder, roles, place, tmp_path, kind):
    (tmp_path / "token").write_text(roles.token)
    values = {
        name: value.format(token=tmp_path / "token", address=roles.address) for name, value in ROLES[kind].items()
    }
    client(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, AWS_ENDPOINT_URL=None,
           AWS_ENDPOINT_URL_S3=recorder.address, **values)  # fmt: skip
    storage.write_bytes(f"{place}/x", b"abc")
    assert storage.read_bytes(f"{place}/x") == b"abc"
    assert len(roles.requests) == 1
    assert {request.headers["x-amz-security-token"] for request in recorder.requests} == {"of-the-role"}


def test_a_worker_takes_its_own_environment_and_no_key_travels(client, recorder, place):
    """What Ray's workers get is a pickle of the client, which is made from the environment where it arrives."""
    client({"FSSPEC_S3_REQUESTER_PAYS": "true"}, AWS_ENDPOINT_URL=recorder.address)
    sent = pickle.dumps(storage.arrow_file_system(place)[0].handler.fs)
    assert SECRET.encode() not in sent
    arrived = pickle.loads(sent)
    arrived.pipe_file(f"{place}/x", b"abc")
    assert {request.headers.get("x-amz-request-payer") for request in recorder.requests} == {"requester"}
