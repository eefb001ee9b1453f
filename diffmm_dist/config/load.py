"""Reading a configuration: YAML with ``extends``, then ``section.key=value`` overrides, then one check of it all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from diffmm_dist.config.schema import Config
from diffmm_dist.errors import UserError, closest, one_line

Tree = dict[str, Any]


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply overrides.

    Args:
        path: YAML file; ``extends: OTHER.yaml`` inside it is relative to the file. None starts from the defaults.
        overrides: ``section.key=value``, the value in YAML.

    Raises:
        UserError: naming every error at once, each with its key.
    """
    problems: list[str] = []
    tree = read_tree(Path(path), seen=()) if path is not None else {}
    for override in overrides:
        _apply(tree, override, problems)
    return _validate(tree, problems, source=str(path) if path is not None else "command line")


def config_from_text(text: str, *, source: str) -> Config:
    """Read a configuration that extends no other, for instance the one kept in a run folder on S3.

    Raises:
        UserError: naming every error at once, each with its key.
    """
    return _validate(_parsed(text, source), [], source=source)


def config_from_tree(tree: Tree, *, source: str) -> Config:
    """Check an already parsed configuration, for instance the one kept in a run folder."""
    return _validate(tree, [], source=source)


def read_tree(path: Path, seen: tuple[Path, ...]) -> Tree:
    """Read one YAML file and the files that it extends, the nearest winning."""
    if path.resolve() in seen:
        raise UserError(f"{path}: 'extends' leads back to this file; remove one of them")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {one_line(error)}") from error
    tree = _parsed(text, str(path))
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str) or "\0" in base:
        raise UserError(f"{path}: 'extends' must name one YAML file, not {base!r}")
    return _merge(read_tree(path.parent / base, (*seen, path.resolve())), tree)


def _parsed(text: str, source: str) -> Tree:
    """Return the sections of a YAML text."""
    try:
        tree = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise UserError(f"{source} is not valid YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{source} must hold sections such as 'data:' and 'model:', not {type(tree).__name__}")
    return tree


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice instead of dropping the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is set twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _merge(base: Tree, top: Tree) -> Tree:
    """Return ``base`` with the sections of ``top`` laid over it, key by key."""
    merged = dict(base)
    for name, value in top.items():
        below = merged.get(name)
        merged[name] = {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _apply(tree: Tree, override: str, problems: list[str]) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        problems.append(f"'{override}' is not of the form section.key=value")
        return
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        problems.append(f"the value of '{override}' is not valid YAML")
        return
    below = tree.get(section)
    tree[section] = {**below, name: value} if isinstance(below, dict) else {name: value}


def _validate(tree: Tree, problems: list[str], *, source: str) -> Config:
    config: Config | None = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        # One sentence per key: further errors of the same key are the other members of a union.
        by_key: dict[str, str] = {}
        for detail in error.errors():
            by_key.setdefault(_key(detail) or detail["msg"], _sentence(detail))
        problems = problems + list(by_key.values())
    if problems or config is None:
        raise UserError(f"{source}: " + "; ".join(problems))
    return config


def _key(detail: ErrorDetails) -> str:
    """Return ``section.key``; members of a union and positions in a list would only blur it."""
    return ".".join([str(part) for part in detail["loc"]][:2])


def _sentence(detail: ErrorDetails) -> str:
    """Turn one pydantic error into words: the dotted key, what is wrong, and the nearest name for an unknown key."""
    key = _key(detail)
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest([str(part) for part in detail['loc']])}"
    if detail["type"] == "missing":
        return f"'{key}' is missing; set it in the file or as {key}{'=VALUE' if '.' in key else '.KEY=VALUE'}"
    if detail["type"] == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    return f"'{key}' is {detail['input']!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _nearest(path: list[str]) -> str:
    sections = Config.model_fields
    if len(path) == 1:
        if path[0].partition(".")[0] in sections:
            return "; write it as a key under its section"
        return closest(path[0], list(sections))
    keys = {name: list(getattr(field.annotation, "model_fields", {})) for name, field in sections.items()}
    elsewhere = [f"{section}.{key}" for section, names in keys.items() for key in names if key == path[1]]
    return f"; did you mean '{elsewhere[0]}'?" if elsewhere else closest(path[1], keys[path[0]])
