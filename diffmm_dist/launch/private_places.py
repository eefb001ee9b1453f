"""Where a run keeps what Ray would write into the home directory, where there is none to write to.

Ray writes its token to ~/.ray and its logs and sockets to a `ray` folder below TMPDIR. Where a home directory is absent
or read-only, or the temporary one cannot be used, these go to a folder of this run's own instead, mode 0700, which goes
when the run ends.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.parallel.group import changed_environment

# A socket's path has at most 107 bytes; below its folder Ray adds a session's name, `/sockets/plasma_store`.
_LONGEST = 43
_FALLBACKS = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def private_places(*, local: bool) -> Iterator[str | None]:
    """While open, Ray can be imported and started, or a cluster joined, whatever HOME and TMPDIR are.

    Args:
        local: Ray is started here, so that it needs a token and a folder of its own.

    Yields:
        The folder for Ray's sessions, None for Ray's own choice.

    Raises:
        UserError: no folder can be written, or the token of the cluster to join cannot be read.
    """
    folder: Path | None = None
    changed: dict[str, str] = {}
    temp: str | None = None
    try:
        if os.path.expanduser("~") == "~":  # Ray's modules ask for it when they are imported
            folder = _private_folder()
            changed["HOME"] = str(folder)
        if not local:
            check_token()
        elif _authenticates() and not _has_token():
            folder = folder or _private_folder()
            changed["RAY_AUTH_TOKEN_PATH"] = _write_token(folder)
        if local and not _usable(_default_temp()):
            folder = folder or _private_folder()
            temp = str(folder / "ray")
        with changed_environment(changed):
            yield temp
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def check_token() -> None:
    """Check that a token for a cluster of somebody else's can be read where one is set or demanded.

    Raises:
        UserError: it cannot.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled" or os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return
    path = _token_path()
    remedy = "give read access, or set RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        # Without a token of its own accord Ray joins a cluster that wants none.
        if mode == "token" or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            raise UserError(f"the cluster's token is not at {path}; {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the cluster's token {path} cannot be read ({one_line(error)}); {remedy}") from error
    else:
        if not text.strip():
            raise UserError(f"the cluster's token {path} is empty; {remedy}")


def _authenticates() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled"


def _token_path() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return True
    try:
        return bool(_token_path().read_text().strip())
    except (OSError, UnicodeDecodeError):
        return False


def _write_token(folder: Path) -> str:
    path = folder / "auth_token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return str(path)


def _default_temp() -> Path:
    """Return where Ray keeps its sessions of its own accord."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def _usable(path: Path) -> bool:
    """Return whether Ray can write to a folder, which may have to be made, and its sockets' paths are short enough."""
    if len(os.fsencode(path)) > _LONGEST or not path.is_absolute():
        return False
    there = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _private_folder() -> Path:
    """Make a folder that only this user can read, with a path short enough for sockets."""
    bases = [_default_temp().parent, *map(Path, _FALLBACKS)]
    for base in bases:
        if _usable(base / "ray-12345678" / "ray") and os.path.isdir(base):
            return Path(tempfile.mkdtemp(prefix="ray-", dir=base))
    raise UserError(
        f"Ray needs a folder to write to with a short path, and none of {', '.join(map(str, dict.fromkeys(bases)))} is "
        "one; set RAY_TMPDIR to one, or cluster.num_workers=0 to train in this process"
    )
