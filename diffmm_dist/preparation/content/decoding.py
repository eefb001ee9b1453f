"""What reading an image and reading a sound have in common: a file of bounded size, and a decoder that may fail."""

from collections.abc import Callable
from typing import TypeVar

from diffmm_dist import storage
from diffmm_dist.errors import TryAgainError, UserError, one_line

T = TypeVar("T")


def undecodable(error: Exception) -> str:
    """Return why a file cannot be used, where a decoder says no more."""
    return f"it cannot be decoded: {one_line(error)}"


def decoded(
    uri: str, decode: Callable[[bytes], T], *, limit: int, reason: Callable[[Exception], str] = undecodable
) -> T:
    """Return what a decoder makes of a file.

    Args:
        uri: path or address of the file.
        decode: from its contents.
        limit: the most bytes that it may have.
        reason: says of an error of the decoder's why the file cannot be used.

    Raises:
        UserError: it cannot be read; the text is a reason.
        TryAgainError: the store did not answer.
    """
    data = storage.read_bytes(uri, limit=limit)
    if not data:
        raise UserError("it is empty")
    try:
        return decode(data)
    except (TryAgainError, UserError, MemoryError):
        raise
    except Exception as error:  # a damaged file can end a decoder in any way
        raise UserError(reason(error)) from error
