"""What every store does, by what fsspec says of its client."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import IO, Any, cast

import fsspec

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.schemes import Scheme
from diffmm_dist.stores.blocks import BlockReader

REPLACED = "another object took its place while it was read"
# What tells one version of a file from another, as the clients of the stores name it.
_VERSION_KEYS = ("ETag", "etag", "generation", "blob_id", "Last-Modified", "last_modified", "created", "size")
_COPIED_WITHIN_S, _LOOK_AGAIN_S = 600.0, 0.2
_REFUSALS = ("401", "403", "unauthorized", "forbidden", "credential", "authent", "authoriz", "account", "anonymous")


def begun(marker: str) -> str:
    """Return the name of the file beside a folder's marker that says: it is being put in place and may be replaced."""
    return f"{marker}.begun"


class Store:
    """A store whose client does as fsspec says.

    A file appears when its upload is complete. There are no conditional writes: see ``put_if``.

    Args:
        scheme: its row in the table of schemes.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    def options(self) -> dict[str, Any]:
        """Return the arguments with which the client is made; FSSPEC_<NAME> in the environment adds to them."""
        return {"use_listings_cache": False}

    def file_system(self) -> Any:
        """Return the client.

        Raises:
            UserError: its package is not installed.
        """
        if find_spec(self.scheme.package) is None:
            raise UserError(
                f'{self.scheme.name}:// needs the package {self.scheme.package}; pip install "diffmm-dist'
                f'[{self.scheme.extra}]"'
            )
        return fsspec.filesystem(self.scheme.name, **self.options())

    def portable_file_system(self) -> Any:
        """Return a client that can be sent to other processes."""
        return self.file_system()

    def path(self, uri: str) -> str:
        """Return an address as the client writes it."""
        return str(self.file_system()._strip_protocol(uri))

    def uri(self, path: str) -> str:
        """Return what the client writes as an address."""
        return path if "://" in path else f"{self.scheme.name}://{path.lstrip('/')}"

    def exists(self, path: str) -> bool:
        """Return whether a file or folder is there."""
        return bool(self.file_system().exists(path))

    def is_folder(self, path: str) -> bool:
        """Return whether a folder is there, or files below it."""
        return bool(self.file_system().isdir(path))

    def children(self, path: str) -> list[str]:
        """Return what is in a folder."""
        return list(self.file_system().ls(path, detail=False))

    def find(self, path: str) -> list[str]:
        """Return all files in a folder and below."""
        return list(self.file_system().find(path))

    def versions(self, path: str) -> dict[str, str]:
        """Return all files in a folder and below, each with what tells its present version from all others."""
        found = self.file_system().find(path, detail=True)
        return {name: self._version_in(info) for name, info in found.items()}

    def glob(self, pattern: str) -> list[str]:
        """Return the files and folders that match a pattern."""
        return list(self.file_system().glob(pattern))

    def version(self, path: str) -> str | None:
        """Return what tells the present version of a file from all others, None where there is no file."""
        try:
            info = self.file_system().info(path)
        except FileNotFoundError as error:
            if self.behind(error) is not error:
                raise
            return None
        return None if info["type"] == "directory" else self._version_in(info)

    def _version_in(self, info: dict[str, Any]) -> str:
        return " ".join(str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None)

    def open_input(self, path: str) -> IO[bytes]:
        """Open a file for random access; a block of another one that took its place meanwhile is refused."""
        files = self.file_system()
        info = files.info(path)
        if info["size"] is None:
            raise OSError("the server does not say how long it is, so parts of it cannot be asked for; copy it first")
        return cast(IO[bytes], BlockReader(int(info["size"]), self._fetching(files, path, self._version_in(info))))

    def _fetching(self, files: Any, path: str, version: str) -> Callable[[int, int], bytes]:
        def fetch(start: int, stop: int) -> bytes:
            try:
                data = bytes(files.cat_file(path, start=start, end=stop))
                replaced = self.version(path) != version
            except Exception as error:
                if isinstance(error, OSError) or not self.is_refusal(error):
                    raise
                raise OSError(one_line(error)) from error  # readers know no exceptions of clients
            if replaced:
                raise UserError(f"cannot read {self.uri(path)}: {REPLACED}; run the same command again")
            if len(data) != stop - start:
                raise OSError(
                    f"{stop - start:,} bytes were asked for and {len(data):,} came; a server that gives no parts of "
                    "files cannot be read from, so copy them first"
                )
            return data

        return fetch

    def open_stream(self, path: str) -> IO[bytes]:
        """Open a file for reading from its start."""
        return self.open_input(path)

    @contextmanager
    def replacing(self, path: str) -> Iterator[IO[bytes]]:
        """Write a file that appears when the block ends well, and not at all otherwise."""
        file = self.file_system().open(path, "wb")
        try:
            yield file
        except BaseException:
            try:
                file.discard()
            finally:
                file.closed = True  # or the garbage collector would finish the upload
            raise
        file.close()

    def move(self, source: str, target: str) -> None:
        """Give a file another name; it keeps the old one until it is whole under the new one."""
        files = self.file_system()
        files.cp_file(source, target)
        deadline = time.monotonic() + _COPIED_WITHIN_S
        while files.info(target)["size"] != files.info(source)["size"]:  # some copy after they have answered
            if time.monotonic() > deadline:
                raise OSError(f"the copy of {self.uri(source)} is not complete after {_COPIED_WITHIN_S:.0f} s")
            time.sleep(_LOOK_AGAIN_S)
        files.rm_file(source)

    def put_in_place(self, source: str, target: str, marker: str) -> None:
        """Move a finished folder; by its marker it counts as complete from the last move on, the old one no longer."""
        files = self.file_system()
        files.pipe_file(f"{target}/{begun(marker)}", b"")
        if files.exists(f"{target}/{marker}"):
            files.rm_file(f"{target}/{marker}")
        old = [path for path in files.find(target) if path != f"{target}/{begun(marker)}"]
        if old:
            files.rm(old)
        paths = [path for path in files.find(source) if path != f"{source}/{marker}"]
        for path in [*paths, f"{source}/{marker}"]:
            self.move(path, target + path[len(source) :])
        files.rm_file(f"{target}/{begun(marker)}")
        files.invalidate_cache()

    def put_if(self, path: str, data: bytes, *, version: str | None) -> str | None:
        """Write a file if its present version is the given one, or, for None, if there is no file.

        Returns:
            The new version, or None where the condition does not hold and nothing was written. The answer to a
            request can get lost; repeated, it finds what the first one has written, and returns None too.

        Raises:
            NotImplementedError: the client cannot do that, or not here.
        """
        raise NotImplementedError

    def honours_conditions(self, path: str) -> bool:
        """Return whether writes whose condition does not hold are refused, tried on a file that nobody has."""
        try:
            first = self.put_if(path, b"1", version=None)
            kept = self.put_if(path, b"2", version=None) is None
            return first is not None and kept and self._replaces_only(path, first)
        except NotImplementedError:
            return False
        finally:
            with suppress(Exception):
                self.file_system().rm_file(path)

    def _replaces_only(self, path: str, version: str) -> bool:
        """Tell whether the version is replaced once, and no more when it is no longer there."""
        second = self.put_if(path, b"3", version=version)
        return second is not None and self.put_if(path, b"4", version=version) is None

    def behind(self, error: Exception) -> Exception:
        """Return what is behind an error that says less than it could, or the error itself.

        Some clients say that nothing is there whenever they do not get an answer.
        """
        cause = error.__cause__
        if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception) or not self.is_refusal(cause):
            return error
        is_missing = getattr(cause, "status", None) == 404 or "NotFound" in type(cause).__name__
        return error if isinstance(cause, FileNotFoundError) or is_missing else cause

    def reason(self, uri: str, error: Exception) -> Exception:
        """Return why the store refused."""
        return error

    def remedy(self, error: BaseException, action: str) -> str:
        """Return what to do about an error, with a semicolon before it; empty for any other."""
        text = f"{type(error).__name__} {error}".lower()
        refused = self.scheme.access and any(word in text for word in _REFUSALS)
        return f"; {self.scheme.access}" if refused else ""

    def is_refusal(self, error: Exception) -> bool:
        """Tell what the client raises: it is of no one class, and often no ``OSError``.

        What is wrong with its settings it says with a ``ValueError`` or ``RuntimeError`` that it raises itself.
        """
        if isinstance(error, OSError) or any(self._is_clients(kind.__module__) for kind in type(error).__mro__):
            return True
        modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
        return isinstance(error, (ValueError, RuntimeError)) and any(map(self._is_clients, modules))

    def _is_clients(self, module: str) -> bool:
        return module.split(".")[0] in self.scheme.clients
