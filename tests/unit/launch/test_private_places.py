"""Ray's files where the home or the temporary directory cannot hold them; every case works for root and for a user."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.launch import private_places as module
from diffmm_dist.launch.private_places import check_token, private_places

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home with a token."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("a token")
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def below_a_file(tmp_path):
    """A path that nobody can make, not even root."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


@pytest.fixture
def bases(tmp_path_factory, monkeypatch):
    """Where private folders are made, in place of /tmp."""
    base = tmp_path_factory.mktemp("b")
    monkeypatch.setattr(module, "_FALLBACKS", (str(base),))
    monkeypatch.setattr(module, "_LONGEST", 300)  # pytest's folders have long names
    return base


def test_what_works_is_left_alone(monkeypatch, bases):
    monkeypatch.setenv("TMPDIR", str(bases))
    before = dict(os.environ)
    with private_places(local=True) as temp:
        assert temp is None
        assert os.environ == before
        assert list(bases.iterdir()) == []


@pytest.mark.parametrize("absent", ["read-only", "missing", "empty token", "token of another's"])
def test_a_home_without_a_usable_token_gets_a_private_one(absent, home, below_a_file, bases, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(bases))
    if absent == "read-only":
        monkeypatch.setenv("HOME", str(below_a_file))
    elif absent == "missing":
        monkeypatch.setenv("HOME", "/no/such/home")
    elif absent == "empty token":
        (home / ".ray" / "auth_token").write_text("\n")
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(below_a_file))
    before = dict(os.environ)
    with private_places(local=True):
        path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert path.parent.parent == bases
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.read_text()) == 64
        assert os.environ["HOME"] == before["HOME"]  # it may hold the profile of S3
    assert os.environ == before
    assert list(bases.iterdir()) == []


@pytest.mark.parametrize("local", [True, False])
def test_a_user_without_a_home_gets_a_private_one(local, bases, monkeypatch):
    """HOME is not set and the number of the user is unknown, as in containers; Ray's modules ask when imported."""
    monkeypatch.setenv("TMPDIR", str(bases))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    with pytest.raises(RuntimeError):
        Path.home()
    with private_places(local=local):
        assert Path.home().parent == bases
    assert "HOME" not in os.environ
    assert list(bases.iterdir()) == []


@pytest.mark.parametrize("reason", ["cannot be made", "too long for a socket", "not absolute"])
def test_a_temporary_folder_that_ray_cannot_use_is_replaced(reason, below_a_file, bases, monkeypatch):
    places = {"cannot be made": str(below_a_file), "too long for a socket": f"{bases}/{'x' * 300}", "not absolute": "t"}
    monkeypatch.setenv("TMPDIR", places[reason])
    with private_places(local=True) as temp:
        assert Path(temp).parent.parent == bases
    assert list(bases.iterdir()) == []


def test_the_longest_folder_still_has_room_for_rays_sockets():
    session = "session_2026-01-31_12-34-56_123456_1234567"
    assert module._LONGEST + len(f"/{session}/sockets/plasma_store") <= 107


def test_no_folder_at_all_is_one_sentence(below_a_file, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(below_a_file))
    monkeypatch.setattr(module, "_FALLBACKS", (str(below_a_file),))
    with pytest.raises(UserError, match=r"Ray needs a folder to write to .* none of .*/folder is one; set RAY_TMPDIR"):
        private_places(local=True).__enter__()


def test_the_private_folder_goes_when_the_run_fails(below_a_file, bases, monkeypatch):
    monkeypatch.setenv("HOME", str(below_a_file))
    monkeypatch.setenv("TMPDIR", str(bases))
    with pytest.raises(KeyError), private_places(local=True):
        raise KeyError
    assert list(bases.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RAY_AUTH_TOKEN_PATH": "{}/none"}, "the cluster's token is not at .*none; give read access, or set RAY_AUTH"),
        ({"RAY_AUTH_TOKEN_PATH": "{}/home"}, r"token .*home cannot be read \(Is a directory\); give"),
        ({"HOME": "{}/file"}, r"file/.ray/auth_token cannot be read \(Not a directory\)"),
        ({"HOME": "{}", "RAY_AUTH_MODE": "token"}, "token is not at .*/.ray/auth_token"),
        ({"RAY_AUTH_TOKEN_PATH": "{}/file"}, "file is empty"),
        ({"RAY_AUTH_TOKEN_PATH": "{}/bytes"}, "bytes cannot be read"),
    ],
)  # fmt: skip
def test_a_token_for_somebody_elses_cluster_that_cannot_be_read_is_one_sentence(
    settings, message, tmp_path, below_a_file, monkeypatch
):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    with pytest.raises(UserError, match=message):
        check_token()
    with pytest.raises(UserError, match=message):
        private_places(local=False).__enter__()


@pytest.mark.parametrize(
    "settings",
    [{}, {"RAY_AUTH_TOKEN": "x", "RAY_AUTH_TOKEN_PATH": "/none"}, {"RAY_AUTH_MODE": "disabled", "HOME": "/none"},
     {"HOME": "/none"}],
)  # fmt: skip
def test_a_cluster_that_wants_no_token_or_gets_one_is_joined(settings, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    check_token()
