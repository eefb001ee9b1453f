"""Paths and addresses of stores behind one small set of functions.

Endpoints and credentials come from the environment or the files of the stores' own tools, never from a configuration.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

from diffmm_dist import json_text
from diffmm_dist.checksums import file_sha256
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.places import check_apart as check_apart
from diffmm_dist.places import check_local_file, settle, target_of
from diffmm_dist.places import is_remote as is_remote
from diffmm_dist.places import is_shared as is_shared
from diffmm_dist.records import parse_record, sealed
from diffmm_dist.regular_files import open_regular, read_regular, size_text
from diffmm_dist.staging import at_work_in, check_writable, partial_folder, partial_name, put_in_place, remove_dead
from diffmm_dist.stores.access import explained, resolve
from diffmm_dist.stores.registry import store_of
from diffmm_dist.stores.s3 import num_retries as num_retries
from diffmm_dist.stores.store import begun

_PIECE = 1 << 20


def join(uri: str, *parts: str) -> str:
    """Append path parts to a path or an address."""
    return "/".join([uri.rstrip("/"), *parts])


def name(uri: str) -> str:
    """Return the last part of a path or an address."""
    return (uri if is_remote(uri) else os.path.abspath(uri)).rstrip("/").rpartition("/")[2]


def exists(uri: str) -> bool:
    """Return whether a file or folder is there."""
    file_system, path = resolve(uri)
    with explained(uri, "look at"):
        return store_of(uri).exists(path) if is_remote(uri) else bool(file_system.exists(path))


def is_folder(uri: str) -> bool:
    """Return whether a folder is there, or objects below a prefix."""
    file_system, path = resolve(uri)
    with explained(uri, "look at"):
        return store_of(uri).is_folder(path) if is_remote(uri) else bool(file_system.isdir(path))


def glob(pattern: str) -> list[str]:
    """Return the sorted paths or addresses that match a pattern."""
    file_system, path = resolve(pattern)
    with explained(pattern, "list"):
        if not is_remote(pattern):
            return sorted(map(str, file_system.glob(path)))
        store = store_of(pattern)
        return sorted(map(store.uri, store.glob(path)))


def list_names(uri: str) -> list[str]:
    """Return the sorted names inside a folder, empty where there is none, or where another process removes it now."""
    _, path = resolve(uri)
    with explained(uri, "list"), suppress(FileNotFoundError):
        if is_remote(uri):
            entries = store_of(uri).children(path) if store_of(uri).is_folder(path) else []
        else:
            entries = os.listdir(path) if os.path.isdir(path) else []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
    return []


def list_tree(uri: str) -> list[str]:
    """Return the sorted paths, relative to a folder, of all files in it and below, empty where there is none."""
    file_system, path = resolve(uri)
    with explained(uri, "list"):
        root = path.rstrip("/") + "/"
        files = store_of(uri).find(path) if is_remote(uri) else file_system.find(path)
        return sorted(found.removeprefix(root) for found in files if found.startswith(root))


def read_bytes(uri: str, *, limit: int = json_text.LARGEST_BYTES) -> bytes:
    """Read a whole file.

    Raises:
        UserError: it cannot be read, or is larger than ``limit`` bytes, which nothing of its kind is.
    """
    file_system, path = resolve(uri)
    with explained(uri, "read"):
        if not is_remote(uri):
            return read_regular(path, limit=limit)
        size = int(file_system.info(path)["size"] or 0)  # which not every web server says
        data = b"" if size > limit else bytes(file_system.cat_file(path))
        if max(size, len(data)) > limit:
            raise UserError(f"{uri} is larger than {size_text(limit)}; is this the right file?")
        return data


def read_json(uri: str) -> Any:
    """Read a JSON file."""
    data = read_bytes(uri)
    try:
        return json_text.parse(data)
    except ValueError as error:
        raise UserError(f"{uri} is not valid JSON: {one_line(error)}") from error


def read_record(uri: str, kind: Any, *, remedy: str, must_be_sealed: bool = False) -> Any:
    """Read a JSON file of a known form; the arguments, and the errors of what it holds, are those of ``parse_record``.

    Raises:
        UserError: it is missing.
    """
    return parse_record(uri, read_bytes(uri), kind, remedy=remedy, must_be_sealed=must_be_sealed)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file at once: a reader sees the old file or the new one, never a part."""
    with replacing_file(uri) as file:
        file.write(data)


@contextmanager
def replacing_file(uri: str) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name, complete, when the block ends well, and not at all otherwise."""
    _, path = resolve(uri, to_write=True)
    with explained(uri, "write"):
        if is_remote(uri):
            with store_of(uri).replacing(path) as remote:
                yield remote
            return
        path = os.path.realpath(path)  # a link stays, and what it points at is replaced
        check_local_file(uri, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = partial_name(path)
        try:
            with open(partial, "wb") as local:
                yield local  # writers on top of it may close it
            _sync(partial)
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.remove(partial)


def unclosed(file: IO[bytes]) -> Any:
    """Return a file for a writer, which must not close it: what has failed would appear as if it were complete."""
    import pyarrow as pa

    return pa.PythonFile(_NotToBeClosed(file), mode="w")


class _NotToBeClosed:
    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write
        self.flush = file.flush

    def close(self) -> None:
        """Leave it open."""


def _sync(path: str) -> None:
    """Make sure that a file's contents are on the disk before its name is."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(uri: str, value: Any) -> None:
    """Write a JSON file at once."""
    write_bytes(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return a value as the contents of a JSON file."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_record(uri: str, record: Mapping[str, Any]) -> None:
    """Write a JSON file at once, with a checksum of its contents as its last key."""
    write_json(uri, sealed(record))


@contextmanager
def open_input(uri: str) -> Iterator[IO[bytes]]:
    """Open a file for random access: ranged reads on a store.

    A file on a disk is read, not mapped: a mapped one that somebody shortens ends the process that looks at it.
    """
    _, path = resolve(uri)
    with explained(uri, "read"):
        file = store_of(uri).open_input(path) if is_remote(uri) else open_regular(path)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def open_file(uri: str) -> Iterator[IO[bytes]]:
    """Open a file for reading from its start."""
    _, path = resolve(uri)
    with explained(uri, "read"), store_of(uri).open_stream(path) if is_remote(uri) else open_regular(path) as file:
        yield file


def open_output(uri: str) -> IO[bytes]:
    """Open a file for writing from its start; folders are made as needed."""
    file_system, path = resolve(uri, to_write=True)
    with explained(uri, "write"):
        if not is_remote(uri):
            path = os.path.realpath(path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
        file: IO[bytes] = file_system.open(path, "wb")
        return file


def sha256(uri: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open_file(uri) as file:
        return file_sha256(file)


def download(uri: str, path: str) -> str:
    """Copy a file to a local path, where it appears at once; return its SHA-256."""
    digest = hashlib.sha256()
    with open_file(uri) as source, replacing_file(path) as target:
        target.writelines(_hashed(uri, source, digest))
    return digest.hexdigest()


def _hashed(uri: str, file: IO[bytes], digest: Any) -> Iterator[bytes]:
    """Yield a file in pieces that the digest has taken in."""
    while True:
        with explained(uri, "read"):
            piece = file.read(_PIECE)
        if not piece:
            return
        digest.update(piece)
        yield piece


def remove_file(uri: str) -> None:
    """Remove a file, if it is there."""
    file_system, path = resolve(uri, to_write=True)
    with explained(uri, "remove"), suppress(FileNotFoundError):  # somebody else may remove it too
        if file_system.exists(path):
            file_system.rm_file(path)


def upload(local: str, uri: str) -> None:
    """Copy a local file to an address, where it appears at once."""
    with open(local, "rb") as source, replacing_file(uri) as target:
        shutil.copyfileobj(source, target)


def remove_folder(uri: str, *, marker: str | None = None) -> None:
    """Remove a folder and all that is in it, if it is there; first the file that marks it as complete, if named.

    A file or a link in its place goes too.
    """
    file_system, path = resolve(uri, to_write=True)
    with explained(uri, "remove"), suppress(FileNotFoundError):  # somebody else may remove it too
        if not is_remote(uri) and (os.path.islink(path) or os.path.isfile(path)):
            os.remove(path)  # what a link points at belongs to others
            return
        if marker is not None and file_system.exists(f"{path}/{marker}"):
            file_system.rm_file(f"{path}/{marker}")
        if not is_remote(uri):
            shutil.rmtree(path, ignore_errors=True)
        elif file_system.exists(path):
            file_system.rm(path, recursive=True)


def check_place(uri: str, *, marker: str, force: bool, sources: Sequence[str] = ()) -> None:
    """Raise a ``UserError`` unless a folder may and can be made or replaced.

    What killed commands have left of such a folder is removed.

    Args:
        uri: the folder.
        marker: as in ``staged_folder``.
        force: likewise.
        sources: what is read to make it, none of which it may touch.
    """
    settle(uri, to_write=True)
    check_apart(uri, sources)
    if not is_remote(uri):
        remove_dead(target_of(uri))
    is_ours = exists(join(uri, marker))
    if is_ours and not force:
        raise UserError(f"{uri} already exists; choose another place or pass --force to replace it")
    names = [] if is_ours else list_names(uri)
    if names and begun(marker) not in names:
        raise UserError(f"{uri} holds other files (no {marker} among them); choose an empty or new folder")
    path = target_of(uri)
    if not is_remote(uri):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise UserError(f"{uri} is a file; choose an empty or new folder")
        if os.path.ismount(path) or path == os.path.realpath(os.curdir):
            raise UserError(f"{uri} cannot be replaced as a whole, since it is in use; choose a folder inside it")
    _check_writable(uri, f"{partial_folder(path)}/{marker}")


def check_file(uri: str, sources: Sequence[str] = ()) -> None:
    """Raise a ``UserError`` unless a file may and can be made or replaced, without reading any of ``sources``."""
    settle(uri, to_write=True)
    check_apart(uri, sources)
    path = target_of(uri)
    if not is_remote(uri):
        check_local_file(uri, path)
    _check_writable(uri, partial_name(path))


def _check_writable(uri: str, probe: str) -> None:
    """Find out now whether ``probe``, a file that is not there, can be written for ``uri``; leave nothing behind."""
    with explained(uri, "write"):
        if is_remote(probe):
            file_system, path = resolve(probe)
            file_system.pipe_file(path, b"")
            file_system.rm_file(path)
            return
        check_writable(probe)


@contextmanager
def staged_folder(uri: str, *, marker: str, force: bool) -> Iterator[str]:
    """Build a folder aside and put it in place only when it is complete.

    Yields the address of an empty staging folder. When the block ends without an exception the folder takes its
    place by renaming; otherwise it is removed and whatever stood at ``uri`` is left as it was. A link at ``uri`` stays,
    and what it points at is replaced. Stores have no rename: there the old folder's ``marker`` is removed first and
    the new one's moved last, so that a part never counts as a whole.

    Args:
        uri: the folder to make.
        marker: name of the file without which the folder does not count as complete.
        force: replace a folder that holds the marker.

    Raises:
        UserError: there is something at ``uri`` that may not be replaced.
    """
    check_place(uri, marker=marker, force=force)
    target = target_of(uri)
    staging = partial_folder(target)
    try:
        with ExitStack() as at_work:
            if not is_remote(uri):
                _enter(at_work, staging)
            yield staging
            _commit(staging, target, marker)
    except BaseException:
        remove_folder(staging)
        raise


def _enter(at_work: ExitStack, staging: str) -> None:
    with explained(staging, "write"):
        at_work.enter_context(at_work_in(staging))


def _commit(staging: str, uri: str, marker: str) -> None:
    with explained(uri, "write"):
        if is_remote(uri):
            store_of(uri).put_in_place(resolve(staging)[1], resolve(uri)[1], marker)
        else:
            assert os.path.exists(os.path.join(staging, marker))
            put_in_place(staging, uri)


def arrow_file_system(uri: str) -> tuple[Any, str]:
    """Return pyarrow's view of the file system that holds a path or an address, None for the disk, and the path.

    It can be sent to other processes.
    """
    _, path = resolve(uri)
    if not is_remote(uri):
        return None, path
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(store_of(uri).portable_file_system())), path
