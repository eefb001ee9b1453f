"""What a value is and what it must be, in plain words.

They are made from the JSON schema of its type, so that the words of a validator reach nobody.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from diffmm_dist.safe_text import visible

_MEMBERS = 10
LONGEST = 80  # characters of a value, or of the path to one, that a sentence repeats


def shown(value: Any) -> str:
    """Return a value as one would write it in YAML, texts in quotes, shortened where it is long."""
    if isinstance(value, str | float):
        return shortened(repr(value))
    try:
        text = yaml.safe_dump(_beginning(value), default_flow_style=True, width=10**9, allow_unicode=True)
    except yaml.YAMLError:  # no value of YAML
        text = repr(_beginning(value))
    return shortened(text.strip().removesuffix("...").strip())


def _beginning(value: Any, depth: int = 3) -> Any:
    """Return as much of a list or a map as a sentence has room for; it may hold anything, any number of times."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
    if not isinstance(value, list | tuple | dict):
        return value
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        parts = {_beginning(key): _beginning(part, depth - 1) for key, part in islice(value.items(), _MEMBERS)}
        return parts if len(value) <= _MEMBERS else {**parts, "...": f"{len(value):,} in all"}
    members = [_beginning(part, depth - 1) for part in value[:_MEMBERS]]
    return members if len(value) <= _MEMBERS else [*members, f"... {len(value):,} in all"]


def shortened(text: str) -> str:
    """Return a text on one line that is short enough for a sentence, its end kept, nothing invisible."""
    text = visible(" ".join(text.split()))
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 20]} ... {text[-10:]} ({len(text):,} characters)"


def allowed(schema: Mapping[str, Any], definitions: Mapping[str, Any] | None = None) -> str:
    """Return what a value must be, such as "a whole number from 1 to 4096".

    Args:
        schema: JSON schema of its type.
        definitions: what the schema refers to.
    """
    schema = _followed(schema, definitions or {})
    if "anyOf" in schema:
        members = dict.fromkeys(allowed(member, definitions) for member in schema["anyOf"])
        return (", or " if any("," in member for member in members) else " or ").join(members)
    if "const" in schema:
        return shown(schema["const"])
    if "enum" in schema:
        return _one_of([shown(value) for value in schema["enum"]])
    kind = schema.get("type")
    if kind == "array":
        return _list(schema, definitions)
    if kind == "object":
        if "properties" in schema:
            return f"a map with the keys {', '.join(schema['properties'])}"
        values = schema.get("additionalProperties")
        return f"a map from names to {allowed(values, definitions)}" if isinstance(values, Mapping) else "a map"
    if kind in ("integer", "number"):
        return {"integer": "a whole number", "number": "a finite number"}[kind] + _limits(schema)
    if "pattern" in schema:
        return f"text of the form {schema['pattern']}"
    if schema.get("minLength"):
        return "text that is not empty"
    return {"string": "text", "boolean": "true or false", "null": "null"}.get(kind or "", "another value")


def _one_of(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _list(schema: Mapping[str, Any], definitions: Mapping[str, Any] | None) -> str:
    if "prefixItems" in schema:
        members = [allowed(member, definitions) for member in schema["prefixItems"]]
        return f"a list of {len(members)} values, each {' and '.join(dict.fromkeys(members))}"
    least = schema.get("minItems", 0)
    size = f" of at least {least} value{'s' if least > 1 else ''}" if least else ""
    return f"a list{size}, each {allowed(schema.get('items', {}), definitions)}"


def _limits(schema: Mapping[str, Any]) -> str:
    """Return the range of a number, such as " from 0 to 1" or " above 0"."""
    low, high, above, below = (
        str(schema[name]).removesuffix(".0") if name in schema else None
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    )
    if low and high:
        return f" from {low} to {high}"
    parts = [f"of at least {low}" if low else "", f"above {above}" if above else ""]
    parts += [f"at most {high}" if high else "", f"below {below}" if below else ""]
    words = " and ".join(part for part in parts if part)
    return f" {words}" if words else ""


def _followed(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a schema refers to, or itself."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return _followed(definitions[name], definitions) if name else schema


def damage(kind: Any, error: ValidationError) -> str:
    """Return where a record that was read is not of its form, and what it must be there.

    Args:
        kind: the record's type.
        error: what was found.
    """
    schema = TypeAdapter(kind).json_schema()
    detail = error.errors()[0]
    where = shortened(".".join(str(part) for part in detail["loc"])) or "its top"
    if detail["type"] == "value_error":
        return f"is damaged: {detail['ctx']['error']}"
    if detail["type"] == "missing":
        return f"is damaged at '{where}': it is missing"
    if detail["type"] == "extra_forbidden":
        return f"is damaged at '{where}': it does not belong there"
    definitions = schema.get("$defs", {})
    part = _followed(schema, definitions)
    for name in detail["loc"]:
        below = _member(part, name)
        if below is None:
            break
        part = _followed(below, definitions)
    return f"is damaged at '{where}': it is {shown(detail['input'])} and must be {allowed(part, definitions)}"


def _member(schema: Mapping[str, Any], name: int | str) -> Mapping[str, Any] | None:
    """Return the schema of what lies at a key or a position, None where it has none of its own."""
    if name in schema.get("properties", {}):
        found = schema["properties"][name]
    elif isinstance(name, int):
        members = schema.get("prefixItems", [])
        found = members[name] if name < len(members) else schema.get("items")
    else:
        found = schema.get("additionalProperties")
    return found if isinstance(found, Mapping) else None
