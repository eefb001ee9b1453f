"""Places: what they hold can be listed and read, and a file can be written, read back and removed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress

from diffmm_dist import storage
from diffmm_dist.doctor.finding import Finding
from diffmm_dist.errors import UserError
from diffmm_dist.places import is_remote, settle
from diffmm_dist.schemes import scheme_of

_PREFIX = ".doctor-"


def probe(name: str, place: str) -> Iterator[Finding]:
    """Yield whether a folder or an address is there and can be read, and written where its kind can be.

    Args:
        name: of the finding.
        place: settled.

    Raises:
        UserError: it cannot.
    """
    scheme = scheme_of(place)
    if scheme is not None and not scheme.writable:
        yield from readable(name, place)
        return
    if scheme is None and not storage.is_folder(place):
        what = "it is no folder" if storage.exists(place) else "it does not exist; make it"
        raise UserError(f"cannot use {place}: {what}, or name another folder")
    entries = len(storage.list_names(place))
    write_and_read(settle(place, to_write=True))
    yield Finding(name, "ok", f"{place} was listed ({_counted(entries)}), written, read and tidied")


def readable(name: str, place: str) -> Iterator[Finding]:
    """Yield whether a place that is only read is there."""
    if not storage.exists(place):
        raise UserError(f"cannot read {place}: it does not exist, or may not be seen; check its name")
    yield Finding(name, "ok", f"{place} is there and can be read")


def writable(name: str, place: str) -> Iterator[Finding]:
    """Yield whether something can be made at a place that need not be there yet.

    Raises:
        UserError: it cannot.
    """
    folder = place
    while not is_remote(folder) and not os.path.lexists(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    if not is_remote(folder) and not os.path.isdir(folder):
        raise UserError(f"cannot write {place}: {folder} is not a folder; name another place")
    write_and_read(folder)
    is_new = not is_remote(folder) and folder != place
    yield Finding(name, "ok", f"{place} can be {'made' if is_new else 'written'}")


def write_and_read(folder: str) -> None:
    """Write a small file of a random name into a folder that is there, read it back and remove it, also if that fails.

    Raises:
        UserError: something of that cannot be done, or other bytes came back.
    """
    path, data = storage.join(folder, f"{_PREFIX}{secrets.token_hex(8)}"), secrets.token_bytes(64)
    try:
        storage.write_bytes(path, data)
        if storage.read_bytes(path) != data:
            raise UserError(f"{folder} gives other bytes back than were written; use another place")
    except BaseException:
        with suppress(Exception):  # why it failed before says more
            storage.remove_file(path)
        raise
    storage.remove_file(path)


def _counted(entries: int) -> str:
    return f"{entries:,} {'entry' if entries == 1 else 'entries'}"
