"""What is wrong with the settings of the S3 client is one sentence, which repeats no secret."""

import pytest

from diffmm_dist import storage
from diffmm_dist.errors import UserError
from diffmm_dist.safe_text import message
from diffmm_dist.stores import s3
from diffmm_dist.stores.s3 import check_endpoint

WRONG = [
    "http://[bad", "http://AKIAKEY:SECRET@host:abc", "http://AKIAKEY:SECRET@127.0.0.1:1", "http://AKIAKEY@host",
    "http://SECRET host", "SECRET", "SECRET:1", "127.0.0.1:1", "AKIAKEY:SECRET@host", "http://host:99999", "http://host:-1",
    "http://host:SECRET", "http://host:0", "ftp://host", "http://", "http:///SECRET", "http://host?sig=SECRET",
    "http://host#SECRET", " http://host", "http://host\nX: SECRET", "http://..:1", "http://" + "a" * 300, "http://%zz",
    "http://AKIAKEY%3ASECRET%40host", "http://host\\SECRET", "http://host/\x00",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIAKEY", "AWS_SECRET_ACCESS_KEY": "SECRET", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1", "AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3.options.cache_clear()
    yield
    s3.options.cache_clear()


def refused():
    """The one sentence with which a place on S3 is refused."""
    s3.options.cache_clear()
    with pytest.raises(UserError) as error:
        storage.exists("s3://bucket/x")
    text = message(str(error.value))
    assert "AKIAKEY" not in text
    assert "SECRET" not in text.replace("AWS_SECRET_ACCESS_KEY", "")
    return text


@pytest.mark.parametrize("endpoint", WRONG)
def test_an_endpoint_that_is_none(endpoint):
    with pytest.raises(UserError, match="^AWS_ENDPOINT_URL .*; .*HOST:PORT") as error:
        check_endpoint(endpoint, "AWS_ENDPOINT_URL")
    assert "AKIAKEY" not in str(error.value)
    assert "SECRET" not in str(error.value).replace("AWS_SECRET_ACCESS_KEY", "")


RIGHT = ["http://127.0.0.1:9000", "https://s3.host.example", "http://[::1]:9000/", "http://h/path"]


@pytest.mark.parametrize("endpoint", RIGHT)
def test_an_endpoint(endpoint):
    check_endpoint(endpoint, "AWS_ENDPOINT_URL")


def test_wherever_the_endpoint_is_set(monkeypatch, tmp_path):
    services = "[default]\nservices = here\n[services here]\ns3 =\n  endpoint_url = http://AKIAKEY:SECRET@h\n"
    settings = ["[default]\nendpoint_url = http://AKIAKEY:SECRET@h:abc\n", services]
    for text in settings:
        (tmp_path / "config").write_text(text)
        assert "endpoint_url of the AWS profile" in refused()
    (tmp_path / "config").unlink()
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://AKIAKEY:SECRET@h")
        assert refused().startswith(f"{name} holds credentials")
        monkeypatch.delenv(name)


LOCAL = "http://127.0.0.1:1"
OTHERS = {
    "profile": ({"AWS_PROFILE": "no-such"}, "check AWS_PROFILE"),
    "attempts": ({"AWS_MAX_ATTEMPTS": "SIX"}, "check AWS_MAX_ATTEMPTS"),
    "half": ({"AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID"),
    "none": ({"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": ""}, "set AWS_ACCESS_KEY_ID"),
    "region": ({"AWS_DEFAULT_REGION": "a b"}, "check AWS_DEFAULT_REGION"),
    "proxy": ({"HTTP_PROXY": "http://AKIAKEY:SECRET@127.0.0.1:abc"}, "check HTTP_PROXY"),
    "no proxy": ({"HTTP_PROXY": "http://AKIAKEY:SECRET@127.0.0.1:2"}, "check HTTP_PROXY"),
    "certificates": ({"AWS_CA_BUNDLE": "/no/such", "AWS_ENDPOINT_URL": "https://127.0.0.1:1"}, "check AWS_CA_BUNDLE"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings(name, monkeypatch):
    environment, remedy = OTHERS[name]
    for variable, value in ({"AWS_ENDPOINT_URL": LOCAL} | environment).items():
        monkeypatch.setenv(variable, value)
    text = refused()
    assert text.startswith("cannot look at s3://bucket/x: ")
    assert remedy in text


def test_a_file_of_settings_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", LOCAL)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    for name in ("config", "credentials"):
        (tmp_path / name).write_bytes(b"\x00\xffgarbage SECRET [[[\n")
        assert "check AWS_CONFIG_FILE" in refused()
        (tmp_path / name).unlink()
