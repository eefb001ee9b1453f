"""The S3 client: how it repeats requests, and what its errors mean; the only place that imports s3fs."""

import contextlib
import io
import logging
import os
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from diffmm_dist.errors import UserError, one_line

_ATTEMPTS = 8  # about half a minute
_BLOCK = 4 << 20  # bytes of one ranged read
_REPLACED = "another object took its place while it was read"
_BLOCKS_AHEAD = 2  # that are asked for before they are needed, both at once


def file_system(*, counted: bool = True) -> Any:
    """Return the file system of S3, without counting repeated requests where it is to be sent to another process."""
    import s3fs

    counting = options()
    return s3fs.S3FileSystem(**counting) if counted else s3fs.S3FileSystem(use_listings_cache=False)


def etag(path: str) -> str | None:
    """Return the tag of an object's present version, None where there is no object."""
    try:
        info = file_system().info(path)
    except FileNotFoundError:
        return None
    return None if info["type"] == "directory" else str(info["ETag"])


def put_if(path: str, data: bytes, *, tag: str | None) -> str | None:
    """Write an object if its present version has a tag, or, for None, if there is no object.

    Returns:
        The new version's tag, or None where the condition does not hold and nothing was written. The answer to a
        request can get lost; repeated, it finds what the first one has written, and returns None too.
    """
    bucket, _, key = path.partition("/")
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    try:
        answer = file_system().call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except Exception as error:  # of the client's many kinds
        if _status(error) in (404, 409, 412) and _code(error) != "NoSuchBucket":
            return None
        raise
    return str(answer["ETag"])


def begun(marker: str) -> str:
    """Return the name of the file beside a folder's marker that says: it is being put in place and may be replaced."""
    return f"{marker}.begun"


def put_in_place(source: str, target: str, marker: str) -> None:
    """Move a finished folder; by its marker it counts as complete from the last move on, and the old one no longer."""
    files = file_system()
    files.pipe_file(f"{target}/{begun(marker)}", b"")
    if files.exists(f"{target}/{marker}"):
        files.rm_file(f"{target}/{marker}")
    old = [path for path in files.find(target) if path != f"{target}/{begun(marker)}"]
    if old:
        files.rm(old)
    paths = [path for path in files.find(source) if path != f"{source}/{marker}"]
    for path in [*paths, f"{source}/{marker}"]:
        files.mv(path, target + path[len(source) :])
    files.rm_file(f"{target}/{begun(marker)}")
    files.invalidate_cache()


def honours_conditions(path: str) -> bool:
    """Return whether the store refuses writes whose condition does not hold, tried on an object that nobody has."""
    try:
        first = put_if(path, b"1", tag=None)
        kept = put_if(path, b"2", tag=None) is None and put_if(path, b"3", tag=f'"{"0" * 32}"') is None
        return first is not None and kept and put_if(path, b"4", tag=first) is not None
    except Exception as error:  # of the client's many kinds
        if _status(error) == 501 or type(error).__name__ == "ParamValidationError":  # the store, the client: too old
            return False
        raise
    finally:
        with contextlib.suppress(Exception):
            file_system().rm_file(path)


def _answer(error: BaseException | None) -> dict[str, Any]:
    """Return the store's answer behind an error, from inside s3fs's wrapping."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            return answer
        error = error.__cause__
    return {}


def _status(error: BaseException) -> int:
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: BaseException) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


class BlockReader(io.RawIOBase):
    """A file on S3 for reading, whose next blocks are fetched by threads while earlier ones are used.

    All blocks are of one object: a block of another one that took its place in between is refused (``options``).
    Raises what the file system raises where a block is needed that could not be fetched.
    """

    def __init__(self, path: str) -> None:
        self._file = file_system().open(path, "rb", cache_type="none")
        self._path = path
        self._size = int(self._file.size)
        self._place = 0
        self._blocks: dict[int, Future[bytes]] = {}
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="s3-block")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place counted from the file's start, this place or the file's end; return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes | memoryview:
        """Return the next bytes, as many as asked for unless the file ends; no copy where one block holds them."""
        stop = self._size if size < 0 else min(self._place + size, self._size)
        if stop <= self._place:
            return b""
        first, last = self._place // _BLOCK, (stop - 1) // _BLOCK
        for number in range(first, min(last + 1 + _BLOCKS_AHEAD, -(-self._size // _BLOCK))):
            if number not in self._blocks:
                self._blocks[number] = self._threads.submit(self._fetch, number)
        parts = []
        for number in range(first, last + 1):
            start = number * _BLOCK
            block = memoryview(self._blocks[number].result())
            parts.append(block[max(self._place - start, 0) : stop - start])
        for number in [number for number in self._blocks if number < first]:
            del self._blocks[number]
        self._place = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fetch(self, number: int) -> bytes:
        start = number * _BLOCK
        try:
            return bytes(self._file._fetch_range(start, min(start + _BLOCK, self._size)))
        except OSError as error:
            if _was_replaced(error):
                raise UserError(f"cannot read s3://{self._path}: {_REPLACED}; run the same command again") from error
            raise

    def close(self) -> None:
        """Give up what is still to be fetched."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._blocks.clear()
        self._file.close()
        super().close()


@cache
def options() -> dict[str, Any]:
    """Return the arguments of s3fs with which requests that fail for a passing reason are repeated and counted.

    botocore repeats what is throttled, answered 5xx or not answered, with growing pauses; AWS_MAX_ATTEMPTS and
    AWS_RETRY_MODE set how. s3fs repeats the request whose answer broke off.

    Raises:
        UserError: the endpoint that is set is none.
    """
    from aiobotocore.session import get_session

    os.environ.setdefault("AWS_RETRY_MODE", "standard")
    os.environ.setdefault("AWS_MAX_ATTEMPTS", str(_ATTEMPTS))
    session = get_session()
    for source, endpoint in _endpoints(session):
        check_endpoint(endpoint, source)
    session.register("request-created.s3", _retries.request)
    session.register("request-created.s3", _expect_nothing)
    logger = logging.getLogger("s3fs")
    logger.setLevel(logging.DEBUG)
    logger.addFilter(_retries.message)
    # Not every server honours If-Match, so s3fs compares the ETag of each answer with that of the first.
    return {"session": session, "use_listings_cache": False, "local_expiry_check": True}


def _endpoints(session: Any) -> Iterator[tuple[str, str]]:
    """Yield the endpoints that are set, each with the name of what sets it."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            yield name, os.environ[name]
    try:
        profile, services = session.get_scoped_config(), session.full_config.get("services", {})
    except Exception as error:  # of the client's many kinds
        if is_of_client(error):  # which it says when it is used
            return
        raise
    for settings in (services.get(profile.get("services"), {}).get("s3"), profile):
        if isinstance(settings, dict) and settings.get("endpoint_url"):
            yield "endpoint_url of the AWS profile", str(settings["endpoint_url"])


def check_endpoint(endpoint: str, source: str) -> None:
    """Check the address of an S3 server.

    Args:
        endpoint: the address.
        source: what sets it.

    Raises:
        UserError: it is none, or more than that; the error does not repeat it, since it may hold credentials.
    """
    try:
        parts = urlsplit(endpoint)
        port, host = parts.port, parts.hostname or ""
        is_address = parts.scheme in ("http", "https") and port != 0 and host.encode("idna") != b""
    except ValueError:  # UnicodeError is one
        is_address = False
    if is_address and "@" in parts.netloc:
        problem = "holds credentials; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and write"
    elif not is_address or not endpoint.isprintable() or set(endpoint) & set(" \"'?#\\@%"):
        problem = "is not the address of a server; write"
    else:
        return
    raise UserError(f"{source} {problem} http://HOST:PORT or https://HOST:PORT alone")


def _was_replaced(error: BaseException) -> bool:
    from s3fs.utils import FileExpired

    return isinstance(error, FileExpired)


def _expect_nothing(request: Any, **_: Any) -> None:
    """Send objects without asking first: a server's "100 Continue" that gets lost would be waited for without end."""
    del request.headers["Expect"]


def num_retries() -> int:
    """Return how many requests this process has repeated so far."""
    return _retries.count


class _Retries:
    """Counts repeated requests: botocore tells which attempt a request is, s3fs writes a message."""

    def __init__(self) -> None:
        self.count = 0

    def request(self, request: Any, **_: Any) -> None:
        self.count += request.context.get("retries", {}).get("attempt", 1) > 1

    def message(self, record: logging.LogRecord) -> bool:
        self.count += str(record.msg).startswith("Retryable error")
        return record.levelno > logging.DEBUG


_retries = _Retries()


def reason(path: str, error: Exception) -> Exception:
    """Return why S3 refused; an answer to HEAD has no room for that, so another question is asked."""
    if _was_replaced(error):
        return OSError(_REPLACED)
    if one_line(error) not in ("Forbidden", "Bad Request"):
        return error
    try:
        file_system().call_s3("list_objects_v2", Bucket=path.split("/")[0], MaxKeys=1)
    except Exception as told:  # of the client's many kinds
        return told
    return error


_REMEDIES = {
    "Partial credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile",
    "The config profile": "check AWS_PROFILE",
    "Unable to parse config file": "mend it, or check AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE",
    "proxies_config": "check HTTP_PROXY and HTTPS_PROXY",
    "Failed to connect to proxy": "check HTTP_PROXY and HTTPS_PROXY",
    "An HTTP Client raised an unhandled exception": "check AWS_CA_BUNDLE, HTTPS_PROXY and AWS_ENDPOINT_URL",
    "region_name": "check AWS_DEFAULT_REGION",
    "invalid literal for int()": "check AWS_MAX_ATTEMPTS and the other AWS variables and settings that are numbers",
    "Unable to locate credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile",
    "ExpiredToken": "renew the credentials",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "Could not connect to the endpoint": "check AWS_ENDPOINT_URL and the network",
    "NoSuchBucket": "make the bucket or check its name",
    "Access Denied": "give this key the right to {action} there",
    "Forbidden": "give this key the right to {action} there",
}


def remedy(error: BaseException, action: str) -> str:
    """Return what to do about an error, from its own words or those of the one behind it; empty for any other."""
    text = f"{error} {error.__cause__}"
    remedies = (remedy for words, remedy in _REMEDIES.items() if words in text)
    return next((f"; {remedy.format(action=action)}" for remedy in remedies), "")


def is_of_client(error: Exception) -> bool:
    """Tell what the client raises, such as missing credentials: it is no OSError, nor of any one class.

    What is wrong with its settings it says with a ``ValueError`` too, which no other part of it raises.
    """
    if any(_is_clients(kind.__module__) for kind in type(error).__mro__):
        return True
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ValueError) and any(map(_is_clients, modules))


def _is_clients(module: str) -> bool:
    return module.split(".")[0] in ("aiobotocore", "botocore")
