"""Where things are: what a user may write for a file or a folder, settled before any work begins.

A place is a path on a disk or an address on a store (``schemes``). What is settled has its home folder written out; an
address has its scheme in small letters and under its first name, and no slash at its end or twice in a row.
"""

import os
import re
from collections.abc import Mapping, Sequence

from diffmm_dist.errors import UserError
from diffmm_dist.safe_text import refuse_secrets
from diffmm_dist.schemes import S3, Scheme, listed, named, scheme_of
from diffmm_dist.words import shortened

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/{0,2})(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST = 4096  # bytes of a path; an address has fewer
_WRITABLE = listed(writable=True)
_SHARED = f"give {_WRITABLE} addresses, or paths that all nodes share"
_SPECIAL = "?#*[]"  # some tools take them for patterns or for the end of an address


def is_remote(place: str) -> bool:
    """Tell the address of a store from a local path; an unknown scheme is refused."""
    return scheme_of(place) is not None or _refused_scheme(place)


def is_shared(place: str) -> bool:
    """Tell whether a place is the address of a store that other processes, on any machine, see too."""
    return is_remote(place) and _known_scheme(place).shared


def _known_scheme(address: str) -> Scheme:
    scheme = scheme_of(address)
    assert scheme is not None
    return scheme


def as_text(place: object) -> str:
    """Return a path or an address as text.

    Raises:
        UserError: it is neither text nor a path.
    """
    if isinstance(place, str | os.PathLike):
        return str(os.fspath(place))
    raise UserError(f"{place!r} is no place: give a path, or an address such as s3://BUCKET/PREFIX")


def settle(place: str, *, to_write: bool = False, pattern: bool = False) -> str:
    """Return the one form of a place that a user wrote.

    Args:
        place: a path or an address.
        to_write: something is to be made there, which a bucket as a whole, or what can only be read, cannot be.
        pattern: it may be a pattern of names.

    Raises:
        UserError: it is no place; the sentence says what to write instead.
    """
    refuse_secrets(place)
    if not place.strip():
        raise _refusal(place, "a place must not be empty; name a file or a folder")
    if "\0" in place or not _is_text(place):
        raise _refusal(place, "it holds characters that no name has; write it again")
    if len(place.encode()) > _LONGEST:
        raise _refusal(place, "it must be at most 4,096 bytes long; choose a shorter name")
    if is_remote(place):
        return _settled_address(place, to_write=to_write, pattern=pattern)
    if place.startswith("~"):
        place = _from_home(place)
    return place.rstrip("/") or "/"


def settle_local(place: str) -> str:
    """Return the one form of a local path; the errors are those of ``settle``, and an address is one."""
    place = settle(place)
    if is_remote(place):
        raise _refusal(place, "it must be on a local disk; give a path there")
    return place


def settle_to_keep(place: str) -> str:
    """Return the one form of a place where a command makes something; the errors are those of ``settle``."""
    place = settle(place, to_write=True)
    if is_remote(place) and not is_shared(place):
        raise _refusal(place, f"it is in the memory of this command, which ends; give a local path or {_WRITABLE}")
    return place


def check_shared(named: Mapping[str, str]) -> None:
    """Raise a ``UserError`` if an address is one that other processes do not see.

    Args:
        named: places by what they are for.
    """
    for key, place in named.items():
        if is_remote(place) and not is_shared(place):
            raise UserError(f"{key}={place} is in the memory of one process, where workers do not see it; {_SHARED}")


def check_apart(uri: str, sources: Sequence[str]) -> None:
    """Raise a ``UserError`` if a place to write is one of the sources, lies inside one, or has one inside it."""
    target = target_of(uri)
    for source in sources:
        read = target_of(source)
        if target == read:
            raise UserError(f"{uri} is what is read; choose another place to write to")
        if target.startswith(f"{read.rstrip('/')}/"):
            raise UserError(f"{uri} lies inside {source}, which is read; choose a place outside it")
        if read.startswith(f"{target.rstrip('/')}/"):
            raise UserError(f"{uri} has inside it what is read, {source}; choose a place apart from it")


def target_of(uri: str) -> str:
    """Return where something ends up: an address, or a path that no link is part of."""
    uri = settle(uri, pattern=True)
    return uri if is_remote(uri) else os.path.realpath(uri)


def check_inside(uri: str, folder: str) -> None:
    """Raise a ``UserError`` if a local file lies outside a folder because of links; the folder itself may be one."""
    if not is_remote(uri) and not target_of(uri).startswith(f"{target_of(folder).rstrip('/')}/"):
        raise UserError(f"{uri} is a link that leads out of {folder}; put the file itself there")


def check_local_file(uri: str, path: str) -> None:
    """Refuse to replace what is there if it is no file."""
    if os.path.islink(path):
        raise UserError(f"{uri} is a link that leads back to itself; remove it or choose another place")
    if os.path.isdir(path):
        raise UserError(f"{uri} is a folder; name a file in it")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserError(f"{uri} is no ordinary file; choose another place")


def _settled_address(place: str, *, to_write: bool, pattern: bool) -> str:
    scheme = _known_scheme(place)
    parts = [part for part in place.partition("://")[2].split("/") if part]
    root, inside = "/".join(parts[: scheme.depth]), parts[scheme.depth :]
    if place.partition("://")[2].startswith("/") or not scheme.pattern.fullmatch(root):
        raise _refusal(place, f"it names no {scheme.root}; write {scheme.example}")
    if to_write and not scheme.writable:
        what = f"{scheme.name}:// can only be read"
        raise _refusal(place, f"{what}; write to a local path or to {_WRITABLE}")
    if to_write and not inside:
        example = f"{scheme.name}://{root}/data"
        raise _refusal(place, f"it is a whole {scheme.root}; name a place in it, such as {example}")
    special = [mark for mark in _SPECIAL if any(mark in part for part in inside)]
    if special and not pattern:
        raise _refusal(place, f"an address must not hold {' '.join(special)}; choose another name")
    if _CONTROL.search(place):
        raise _refusal(place, "an address has no line breaks or other control characters in it; choose another name")
    if {".", ".."} & set(parts):
        raise _refusal(place, "an address has no . or .. in it; write it out")
    return f"{scheme.name}://{'/'.join(parts)}"


def _from_home(place: str) -> str:
    """Return a path with its ``~`` or ``~user`` written out."""
    found = os.path.expanduser(place)
    if found == place:
        name = place.partition("/")[0]
        who = f"user '{name[1:]}'" if name != "~" else "home folder"
        raise _refusal(place, f"there is no {who} here; write the whole path, or ./{place} for a file of that name")
    return found


def _refused_scheme(place: str) -> bool:
    """Raise a ``UserError`` for an address of no known store, or one written wrongly; return False for a path."""
    match = _SCHEME.match(place)
    if match is None:
        return False
    scheme, slashes, rest = match.group(1).lower(), match.group(2), match.group(3)
    if scheme == "file" and slashes:
        raise _refusal(place, f"write the local path alone, /{rest.lstrip('/')}")
    known = S3 if scheme in ("s3a", "s3n") else named(scheme)
    if known is not None:
        rest = rest.lstrip("/")
        raise _refusal(place, f"write it as {f'{known.name}://{rest}' if rest else known.example}")
    if slashes == "//":
        raise _refusal(place, f"{scheme}:// is no store that is known; give a local path or one of {listed()}")
    return False


def _is_text(place: str) -> bool:
    try:
        place.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(place: str, reason: str) -> UserError:
    written = place if place.strip() and place.isprintable() else ascii(place)
    return UserError(f"{shortened(written)}: {reason}")
