"""The S3 client: how it repeats requests, and what its errors mean; the only place that imports s3fs."""

import logging
import os
from functools import cache
from typing import Any

from diffmm_dist.errors import one_line

_ATTEMPTS = 8  # about half a minute


def file_system(*, counted: bool = True) -> Any:
    """Return the file system of S3, without counting repeated requests where it is to be sent to another process."""
    import s3fs

    return s3fs.S3FileSystem(**options()) if counted else s3fs.S3FileSystem(use_listings_cache=False)


@cache
def options() -> dict[str, Any]:
    """Return the arguments of s3fs with which requests that fail for a passing reason are repeated and counted.

    botocore repeats what is throttled, answered 5xx or not answered, with growing pauses; AWS_MAX_ATTEMPTS and
    AWS_RETRY_MODE set how. s3fs repeats the request whose answer broke off.
    """
    from aiobotocore.session import get_session

    os.environ.setdefault("AWS_RETRY_MODE", "standard")
    os.environ.setdefault("AWS_MAX_ATTEMPTS", str(_ATTEMPTS))
    session = get_session()
    session.register("request-created.s3", _retries.request)
    logger = logging.getLogger("s3fs")
    logger.setLevel(logging.DEBUG)
    logger.addFilter(_retries.message)
    return {"session": session, "use_listings_cache": False}


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
    if one_line(error) not in ("Forbidden", "Bad Request"):
        return error
    try:
        file_system().call_s3("list_objects_v2", Bucket=path.split("/")[0], MaxKeys=1)
    except Exception as told:  # of the client's many kinds
        return told
    return error


_REMEDIES = {
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
    """Tell what the client raises, such as missing credentials: it is no OSError, nor of any one class."""
    return any(kind.__module__.split(".")[0] in ("aiobotocore", "botocore") for kind in type(error).__mro__)
