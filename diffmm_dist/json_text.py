"""JSON read with suspicion: no key twice, no numbers that are none, and not nested without end."""

import json
import math
from typing import Any

DEEPEST = 64
LARGEST_BYTES = 64 << 20
_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"


def parse(data: bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: it is no strict JSON, nested too deep, or sets a key twice; the text says which.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if _depth(value) > DEEPEST:
        raise ValueError(_TOO_DEEP)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' is set twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {text[:20]}, which is too large")
    return number


def _depth(value: Any) -> int:
    """Return how deep a value is nested, level by level."""
    depth, level = 0, [value]
    while level:
        depth += 1
        parts = [part for part in level if isinstance(part, dict | list)]
        level = [inner for part in parts for inner in (part.values() if isinstance(part, dict) else part)]
    return depth
