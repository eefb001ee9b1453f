"""Folders that are built aside on a disk: which of them nobody is at work in, and how one takes the place of another.

A command locks the folder in which it builds. The lock ends with its process, so a folder that can be locked was left
by one that was killed. Where the file system has no locks nothing is certain, and nothing is removed.
"""

import ctypes
import errno
import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from diffmm_dist.errors import UserError

_OLD = "-old"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def partial_name(path: str) -> str:
    """Return a new name, in the same folder, for what is to have the name ``path`` when it is complete."""
    return f"{path}.partial-{uuid.uuid4().hex[:8]}"


def is_partial(name: str) -> bool:
    """Return whether a name is one of ``partial_name``."""
    return re.search(r"\.partial-[0-9a-f]{8}$", name) is not None


def partial_folder(target: str) -> str:
    """Return a new hidden place beside the target."""
    parent, slash, name = target.rpartition("/")
    return partial_name(f"{parent}{slash}.{name}")


def check_writable(probe: str) -> None:
    """Raise an ``OSError`` unless a file can be made, and leave nothing behind.

    Args:
        probe: a file that is not there.
    """
    with suppress(FileNotFoundError):
        os.lstat(probe)  # a name too long, or a file among its folders
    parent = os.path.dirname(probe)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise NotADirectoryError(errno.ENOTDIR, f"{parent} is not a folder")
    with tempfile.TemporaryDirectory(prefix=".", dir=parent):
        pass


@contextmanager
def at_work_in(folder: str) -> Iterator[None]:
    """Make a folder, and hold its lock until the block ends."""
    handle = _made_and_locked(folder)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: str, *, what: str) -> Iterator[None]:
    """Make a folder, and hold its lock until the block ends, or not at all.

    Args:
        folder: on a disk; without locks there, nobody can tell.
        what: is made in it, for the error.

    Raises:
        UserError: another process holds it.
    """
    os.makedirs(folder, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(f"another command is making {what} now; wait for it, or choose another place") from error
    except OSError:  # no locks here
        pass
    try:
        yield
    finally:
        os.close(handle)


def _made_and_locked(folder: str) -> int:
    while True:
        os.makedirs(folder, exist_ok=True)
        with suppress(FileNotFoundError):
            return _locked(folder)


def _locked(folder: str) -> int:
    """Open and lock a folder; raise ``FileNotFoundError`` if another command took it for a dead one's meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # no locks here
            fcntl.flock(handle, fcntl.LOCK_EX)
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise FileNotFoundError(folder)
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextmanager
def scratch_folder(prefix: str) -> Iterator[str]:
    """Yield a new folder on the system's disk for temporary files; those that killed commands have left go first.

    Args:
        prefix: of its name, the same for all that may be taken for one another's.
    """
    base = tempfile.gettempdir()
    for entry in os.listdir(base):
        path = os.path.join(base, entry)
        if re.fullmatch(re.escape(prefix) + r"[0-9a-z_]{8}", entry) and not os.path.islink(path):
            _remove_if_dead(path, path)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, at_work_in(folder):
        yield folder


def remove_dead(target: str) -> None:
    """Remove what killed commands have left beside the folder that they were making.

    Where one was killed between two renames (see ``put_in_place``), the former folder is put back first.
    """
    parent, name = os.path.split(target)
    left = re.compile(re.escape(f".{name}.partial-") + r"[0-9a-f]{8}(-old)?")
    entries = os.listdir(parent) if os.path.isdir(parent) else []
    for entry in sorted(entries, reverse=True):  # a former folder before the one that was to replace it
        path = os.path.join(parent, entry)
        if left.fullmatch(entry) and not os.path.islink(path) and os.path.isdir(path):
            _remove_if_dead(path, target)


def _remove_if_dead(path: str, target: str) -> None:
    with suppress(OSError):  # somebody is at work there, or it has gone meanwhile
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.endswith(_OLD) and not os.path.lexists(target):
                os.rename(path, target)
            else:
                shutil.rmtree(path)
        finally:
            os.close(handle)


def put_in_place(staging: str, target: str) -> None:
    """Give a finished folder its name; what had it is removed.

    Both names are exchanged at once where the file system can do that. Elsewhere the former folder is renamed first,
    and for a moment there is none.
    """
    if not os.path.lexists(target):
        os.rename(staging, target)
        return
    if _exchange(staging, target):
        shutil.rmtree(staging, ignore_errors=True)
        return
    old = f"{staging}{_OLD}"
    with at_work_in(target):
        os.rename(target, old)
        try:
            os.rename(staging, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: str, second: str) -> bool:
    """Exchange the names of two folders; return whether the system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not glibc, or an old one
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), second)
