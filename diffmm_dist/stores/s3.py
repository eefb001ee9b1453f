"""The S3 client: how it repeats requests, and what its errors mean; the only place that imports s3fs."""

import logging
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import IO, Any, cast
from urllib.parse import urlsplit

import fsspec

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.schemes import S3, Scheme
from diffmm_dist.stores.blocks import BlockReader
from diffmm_dist.stores.store import REPLACED, Store

_ATTEMPTS = 8  # about half a minute


def file_system(*, counted: bool = True) -> Any:
    """Return the file system of S3, without counting repeated requests where it is to be sent to another process."""
    import s3fs

    counting = options()
    return s3fs.S3FileSystem(**counting) if counted else s3fs.S3FileSystem(use_listings_cache=False)


class S3Store(Store):
    """S3, and what speaks its language: requests are repeated and counted, and writes can have conditions."""

    def __init__(self, scheme: Scheme = S3) -> None:
        super().__init__(scheme)

    def options(self) -> dict[str, Any]:
        """Return the client's arguments; the errors are those of ``options``."""
        return options()

    def file_system(self) -> Any:
        """Return the client, which counts repeated requests."""
        return file_system()

    def portable_file_system(self) -> Any:
        """Return a client that can be sent to other processes, which the session that counts cannot."""
        return file_system(counted=False)

    def version(self, path: str) -> str | None:
        """Return the tag of an object's present version, None where there is no object."""
        try:
            info = file_system().info(path)
        except FileNotFoundError:
            return None
        return None if info["type"] == "directory" else str(info["ETag"])

    def put_if(self, path: str, data: bytes, *, version: str | None) -> str | None:
        """Write an object under a condition; see ``Store.put_if``."""
        bucket, _, key = path.partition("/")
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            answer = file_system().call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except Exception as error:  # of the client's many kinds
            if _status(error) in (404, 409, 412) and _code(error) != "NoSuchBucket":
                return None
            if _status(error) == 501 or type(error).__name__ == "ParamValidationError":
                raise NotImplementedError("the store or the client is too old") from error
            raise
        return str(answer["ETag"])

    def open_input(self, path: str) -> IO[bytes]:
        """Open an object for random access; every answer's tag is compared with that of the first."""
        file = file_system().open(path, "rb", cache_type="none")
        return cast(IO[bytes], BlockReader(int(file.size), _fetching(file, path)))

    def open_stream(self, path: str) -> IO[bytes]:
        """Open an object for reading from its start."""
        return cast(IO[bytes], file_system().open(path, "rb"))

    def move(self, source: str, target: str) -> None:
        """Give an object another name."""
        file_system().mv(source, target)

    def reason(self, uri: str, error: Exception) -> Exception:
        """Return why S3 refused; an answer to HEAD has no room for that, so another question is asked."""
        if _was_replaced(error):
            return OSError(REPLACED)
        if one_line(error) not in ("Forbidden", "Bad Request"):
            return error
        try:
            file_system().call_s3("list_objects_v2", Bucket=uri.split("/")[2], MaxKeys=1)
        except Exception as told:  # of the client's many kinds
            return told
        return error

    def remedy(self, error: BaseException, action: str) -> str:
        """Return what to do about an error, from its own words or those of the one behind it; empty for any other."""
        text = f"{error} {error.__cause__}"
        remedies = (remedy for words, remedy in _REMEDIES.items() if words in text)
        return next((f"; {remedy.format(action=action)}" for remedy in remedies), "")


def _fetching(file: Any, path: str) -> Callable[[int, int], bytes]:
    def fetch(start: int, stop: int) -> bytes:
        try:
            return bytes(file._fetch_range(start, stop))
        except OSError as error:
            if _was_replaced(error):
                raise UserError(f"cannot read s3://{path}: {REPLACED}; run the same command again") from error
            raise

    return fetch


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
        if S3Store().is_refusal(error):  # which it says when it is used
            return
        raise
    for settings in (services.get(profile.get("services"), {}).get("s3"), profile):
        if isinstance(settings, dict) and settings.get("endpoint_url"):
            yield "endpoint_url of the AWS profile", str(settings["endpoint_url"])
    given = fsspec.config.conf.get("s3", {})
    for settings in (given, given.get("client_kwargs")):
        if isinstance(settings, dict) and settings.get("endpoint_url"):
            yield "endpoint_url in FSSPEC_S3", str(settings["endpoint_url"])


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


_REMEDIES = {
    "Partial credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile",
    "The config profile": "check AWS_PROFILE",
    "Unable to parse config file": "mend it, or check AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE",
    "proxies_config": "check HTTP_PROXY and HTTPS_PROXY",
    "Failed to connect to proxy": "check HTTP_PROXY and HTTPS_PROXY",
    "SSL validation failed": "set AWS_CA_BUNDLE to the file with the certificate of who vouches for the server",
    "An HTTP Client raised an unhandled exception": "check AWS_CA_BUNDLE, HTTPS_PROXY and AWS_ENDPOINT_URL",
    "region_name": "check AWS_DEFAULT_REGION",
    "invalid literal for int()": "check AWS_MAX_ATTEMPTS and the other AWS variables and settings that are numbers",
    "Unable to locate credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile, or "
    "FSSPEC_S3_ANON=true for a public bucket",
    "ExpiredToken": "renew the credentials",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "Could not connect to the endpoint": "check AWS_ENDPOINT_URL and the network",
    "NoSuchBucket": "make the bucket or check its name",
    "Access Denied": "give this key the right to {action} there",
    "Forbidden": "give this key the right to {action} there",
}
