"""How places become paths on a file system, and what file systems raise becomes one sentence."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from diffmm_dist.errors import TryAgainError, UserError, may_pass, one_line
from diffmm_dist.places import is_remote, settle
from diffmm_dist.stores.registry import store_of


def resolve(uri: str, *, to_write: bool = False) -> tuple[Any, str]:
    """Return fsspec's file system of a place and the path on it.

    Args:
        uri: a path or an address.
        to_write: something is to be made, replaced or removed there.

    Raises:
        UserError: it is no place, its store can only be read, or the store's package is not installed.
    """
    uri = settle(uri, pattern=True, to_write=to_write)
    if is_remote(uri):
        store = store_of(uri)
        with explained(uri, "reach"):  # some clients look for credentials when they are made
            return store.file_system(), store.path(uri)
    return fsspec.filesystem("file"), os.path.abspath(uri)


@contextmanager
def explained(uri: str, action: str) -> Iterator[None]:
    """Turn what the file system raises into one sentence that names the place.

    Raises:
        TryAgainError: a store did not answer, after all repeated requests.
        UserError: anything else of the file system's.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = _sentence(uri, action, error)
        if sentence is None:
            raise
        passing = is_remote(uri) and may_pass(error)
        raise (TryAgainError if passing else UserError)(sentence) from error


def _sentence(uri: str, action: str, error: Exception) -> str | None:
    """Return what an error means; None for one that is none of the file system's."""
    if not is_remote(uri):
        if isinstance(error, FileNotFoundError):
            return f"cannot {action} {uri}: it does not exist"
        return f"cannot {action} {uri}: {one_line(error)}" if isinstance(error, OSError) else None
    store = store_of(settle(uri, pattern=True))
    if not store.is_refusal(error):
        return None
    error = store.behind(error)
    if isinstance(error, FileNotFoundError):
        root = store.scheme.root
        whole = f"its {root} does not exist; make it or check its name"
        return f"cannot {action} {uri}: {whole if action == 'write' else store.scheme.missing}"
    reason = store.reason(settle(uri, pattern=True), error)
    return f"cannot {action} {uri}: {one_line(reason)}{store.remedy(reason, action)}"


def version(uri: str) -> str | None:
    """Return what tells the present version of a file on a store from all others, None where there is no file."""
    with explained(uri, "look at"):
        return store_of(uri).version(resolve(uri)[1])


def put_if(uri: str, data: bytes, *, version: str | None) -> str | None:
    """Write a file on a store if its present version is the given one; see ``Store.put_if``."""
    with explained(uri, "write"):
        return store_of(uri).put_if(resolve(uri)[1], data, version=version)


def honours_conditions(uri: str) -> bool:
    """Return whether a store refuses writes whose condition does not hold, tried on a file that nobody has."""
    with explained(uri, "write"):
        return store_of(uri).honours_conditions(resolve(uri)[1])
