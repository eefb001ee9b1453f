"""Records, JSON objects and a run's YAML, with checksums of their own contents."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from diffmm_dist import json_text
from diffmm_dist.errors import DamagedError, one_line
from diffmm_dist.words import damage

_SEAL = "sha256"
_RUN_COMMENT = re.compile(r"# run: ([0-9a-f]{32})\n")
_SEAL_COMMENT = "# sha256: "

# Which run a file belongs to: all of a run's files name the same one.
RunId = Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]


def new_run_id() -> RunId:
    """Return an id that no other run has."""
    return secrets.token_hex(16)


def parse_record(uri: str, data: bytes, kind: Any, *, remedy: str, must_be_sealed: bool = False) -> Any:
    """Return a JSON record, checked and converted; one that is sealed is compared with its checksum.

    Args:
        uri: the file, as errors name it.
        data: what it holds.
        kind: the record's type, such as a TypedDict.
        remedy: what the user can do about a damaged file.
        must_be_sealed: no version of this program has written such a record without a checksum.

    Raises:
        DamagedError: it is no JSON, of another form, or changed since it was written.
    """
    try:
        content = json_text.parse(data)
        record = _adapter(kind).validate_python(unsealed(content))
        check_seal(content, must_be_sealed=must_be_sealed)
        return record
    except ValidationError as error:
        raise DamagedError(f"{uri} {damage(kind, error)}; {remedy}") from error
    except ValueError as error:
        raise DamagedError(f"{uri} is damaged: {one_line(error)}; {remedy}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON record with a checksum of its contents, as the last of its keys."""
    return {**record, _SEAL: _content_hash(record)}


def unsealed(record: Any) -> Any:
    """Return a JSON record without its checksum."""
    return {key: value for key, value in record.items() if key != _SEAL} if isinstance(record, dict) else record


def check_seal(record: Any, *, must_be_sealed: bool = False) -> None:
    """Compare a JSON record with its checksum; one that was written without passes unless it must have one.

    Raises:
        ValueError: the contents are not those that the checksum was made of.
    """
    if not isinstance(record, dict) or _SEAL not in record:
        if must_be_sealed:
            raise ValueError("it has no checksum")
    elif record[_SEAL] != _content_hash(unsealed(record)):
        raise ValueError("its contents do not match its checksum")


def sealed_text(text: str, *, run: RunId) -> str:
    """Return a YAML text, which ends with a line break, with the run's id and a checksum as comments at its end."""
    content = f"{text}# run: {run}\n"
    return f"{content}{_SEAL_COMMENT}{hashlib.sha256(content.encode()).hexdigest()}\n"


def run_of_text(text: str) -> RunId:
    """Compare a YAML text with its checksum; return the id of its run.

    Raises:
        ValueError: it has none, or is not the text that the checksum was made of.
    """
    content, comment, checksum = text.rpartition(_SEAL_COMMENT)
    if not comment or checksum.strip() != hashlib.sha256(content.encode()).hexdigest():
        raise ValueError("its last line is not its checksum")
    run = _RUN_COMMENT.fullmatch(content[content.rstrip("\n").rfind("\n") + 1 :])
    if run is None:
        raise ValueError("it does not say which run it belongs to")
    return run[1]


def _content_hash(record: Mapping[str, Any]) -> str:
    """Return a hash that neither the order of keys nor white space reaches."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
