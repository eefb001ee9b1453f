"""Records, JSON objects and a run's YAML, with checksums of their own contents."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from diffmm_dist import json_text
from diffmm_dist.errors import DamagedError, one_line
from diffmm_dist.words import damage

_SEAL = "sha256"
_COMMENT = "# sha256: "


def parse_record(uri: str, data: bytes, kind: Any, *, remedy: str) -> Any:
    """Return a JSON record, checked and converted; one that is sealed is compared with its checksum.

    Args:
        uri: the file, as errors name it.
        data: what it holds.
        kind: the record's type, such as a TypedDict.
        remedy: what the user can do about a damaged file.

    Raises:
        DamagedError: it is no JSON, of another form, or changed since it was written.
    """
    try:
        content = json_text.parse(data)
        record = TypeAdapter(kind).validate_python(unsealed(content))
        check_seal(content)
        return record
    except ValidationError as error:
        raise DamagedError(f"{uri} {damage(kind, error)}; {remedy}") from error
    except ValueError as error:
        raise DamagedError(f"{uri} is damaged: {one_line(error)}; {remedy}") from error


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON record with a checksum of its contents, as the last of its keys."""
    return {**record, _SEAL: _content_hash(record)}


def unsealed(record: Any) -> Any:
    """Return a JSON record without its checksum."""
    return {key: value for key, value in record.items() if key != _SEAL} if isinstance(record, dict) else record


def check_seal(record: Any) -> None:
    """Compare a JSON record with its checksum; one that was written without passes.

    Raises:
        ValueError: the contents are not those that the checksum was made of.
    """
    if isinstance(record, dict) and _SEAL in record and record[_SEAL] != _content_hash(unsealed(record)):
        raise ValueError("its contents do not match its checksum")


def sealed_text(text: str) -> str:
    """Return a YAML text, which ends with a line break, with its checksum as a comment in its last line."""
    return f"{text}{_COMMENT}{hashlib.sha256(text.encode()).hexdigest()}\n"


def check_text(text: str) -> None:
    """Compare a YAML text with its checksum.

    Raises:
        ValueError: it has none, or is not the text that the checksum was made of.
    """
    content, comment, checksum = text.rpartition(_COMMENT)
    if not comment or checksum.strip() != hashlib.sha256(content.encode()).hexdigest():
        raise ValueError("its last line is not its checksum")


def _content_hash(record: Mapping[str, Any]) -> str:
    """Return a hash that neither the order of keys nor white space reaches."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
