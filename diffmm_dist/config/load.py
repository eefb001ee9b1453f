"""Reading a configuration: YAML with ``extends``, then ``section.key=value`` overrides, then one check of it all."""

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import TypeAdapter

from diffmm_dist.config import yaml_text
from diffmm_dist.config.names import Setting, malformed, settings, unknown_key, unknown_section
from diffmm_dist.config.schema import Config, broken_rules
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.places import settle_local
from diffmm_dist.regular_files import read_regular
from diffmm_dist.safe_text import check_word, refuse_secrets
from diffmm_dist.words import allowed, shortened, shown

Tree = dict[str, Any]
COMMAND_LINE = "command line"
_MOST_FILES = 20


class Layer(NamedTuple):
    """Settings from one place; a later layer wins over an earlier one.

    Attributes:
        source: the file, or the command line.
        tree: its sections.
    """

    source: str
    tree: Tree


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply overrides.

    Args:
        path: YAML file; ``extends: OTHER.yaml`` inside it is relative to the file. None starts from the defaults.
        overrides: ``section.key=value``, the value in YAML.

    Raises:
        UserError: naming every mistake at once, each with its key, by the file or command line that it stands in.
    """
    layers = read_layers(Path(path), seen=()) if path is not None else []
    tree, problems = _parsed_overrides(overrides)
    check = _Check(COMMAND_LINE if path is None else str(path))
    for problem in problems:
        check.add(COMMAND_LINE, problem)
    return check.config([*layers, Layer(COMMAND_LINE, tree)])


def config_from_text(text: str, *, source: str) -> Config:
    """Read a configuration that extends no other, for instance the one kept in a run folder on S3.

    Raises:
        UserError: naming every mistake at once, each with its key.
    """
    return config_from_tree(_parsed(text, source), source=source)


def config_from_tree(tree: Tree, *, source: str) -> Config:
    """Check an already parsed configuration, for instance the one kept in a run folder."""
    return _Check(source).config([Layer(source, tree)])


def read_layers(path: Path, seen: tuple[Path, ...]) -> list[Layer]:
    """Read one YAML file and the files that it extends, which come first."""
    check_word(str(path))
    if len(seen) > _MOST_FILES:
        raise UserError(f"{path}: more than {_MOST_FILES} files extend one another; put them together")
    try:
        place = path.resolve()
        if place in seen:
            raise UserError(f"{path}: 'extends' leads back to this file; remove one of them")
        text = read_regular(path, limit=yaml_text.LARGEST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # links in a circle are a RuntimeError
        raise UserError(f"cannot read the configuration {path}: {one_line(error)}") from error
    tree = _parsed(text, str(path))
    base = tree.pop("extends", None)
    if base is None:
        return [Layer(str(path), tree)]
    if not isinstance(base, str):
        raise UserError(f"{path}: 'extends' must name one YAML file, not {shown(base)}")
    below = path.parent / settle_local(base)
    return [*read_layers(below, (*seen, place)), Layer(str(path), tree)]


def _parsed(text: str, source: str) -> Tree:
    """Return the sections of a YAML text."""
    refuse_secrets(text, where=source)
    try:
        tree = yaml_text.parse(text)
    except ValueError as error:
        raise UserError(f"{source} is not valid YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        what = "but is empty" if tree is None else f"not {shown(tree)}"
        raise UserError(f"{source} must hold sections such as 'data:' and 'model:', {what}")
    return tree


def _parsed_overrides(overrides: Sequence[str]) -> tuple[Tree, list[str]]:
    """Return the sections of ``section.key=value`` texts, and what is wrong with the others."""
    tree: Tree = {}
    problems: list[str] = []
    others: list[str] = []
    for override in overrides:
        refuse_secrets(override, where=COMMAND_LINE)
        key, equals, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name) or key != key.strip() or key.startswith("-"):
            others.append(override)
            continue
        try:
            tree.setdefault(section, {})[name] = yaml_text.parse(text)
        except ValueError:
            problems.append(f"the value of '{shortened(override)}' is not valid YAML")
    return tree, [*problems, *malformed(others)]


class _Check:
    """Finds every mistake of a configuration, by the place that it stands in.

    Args:
        source: the place that is to be completed where something is missing.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._problems: dict[str, list[str]] = {}

    def add(self, source: str, problem: str) -> None:
        """Note a mistake."""
        self._problems.setdefault(source, []).append(problem)

    def config(self, layers: Sequence[Layer]) -> Config:
        """Return the configuration of some layers, the last one winning.

        Raises:
            UserError: with all mistakes, also those noted before.
        """
        written: dict[str, _Written] = {}
        for place, layer in enumerate(layers):
            for text in _texts(layer.tree):  # escapes in the file may have hidden it so far
                refuse_secrets(text, where=layer.source)
            written |= self._known_keys(place, layer)
        values = self._values(written)
        for rule, sentence in broken_rules(values):
            last = max((written[key] for key in rule.keys if key in written), key=lambda one: one.place)
            self.add(last.source, sentence)
        self._raise_all([layer.source for layer in layers])
        tree: Tree = {}
        for setting in settings():
            tree.setdefault(setting.section, {})[setting.name] = values[setting.key]
        return Config.model_validate(tree)

    def _known_keys(self, place: int, layer: Layer) -> dict[str, "_Written"]:
        """Return what a layer sets, and note the sections and keys that do not exist."""
        known = {setting.key for setting in settings()}
        written = {}
        for section, keys in layer.tree.items():
            if section not in Config.model_fields:
                self.add(layer.source, unknown_section(str(section)))
                continue
            if not isinstance(keys, dict | None):
                self.add(layer.source, f"'{section}' is {shown(keys)}: it must be a section with keys under it")
                continue
            for name, value in (keys or {}).items():
                if f"{section}.{name}" in known:
                    written[f"{section}.{name}"] = _Written(value, layer.source, place)
                else:
                    self.add(layer.source, unknown_key(section, str(name)))
        return written

    def _values(self, written: dict[str, "_Written"]) -> dict[str, Any]:
        """Return all values that are right, converted, and note the others and what is missing."""
        values = {}
        for setting in settings():
            if setting.key not in written:
                if setting.field.is_required():
                    self.add(self._source, f"'{setting.key}' is missing; set it in the file or as {setting.key}=VALUE")
                else:
                    values[setting.key] = setting.field.default
                continue
            one = written[setting.key]
            try:
                values[setting.key] = _converted(setting, one.value)
            except ValueError as error:
                self.add(one.source, f"'{setting.key}' is {_refusal(setting, one.value, error)}")
        return values

    def _raise_all(self, sources: Sequence[str]) -> None:
        """Raise what was noted, if anything, in the order of the sources."""
        lists = {source: self._problems[source] for source in dict.fromkeys([*sources, *self._problems])
                 if source in self._problems}  # fmt: skip
        if lists:
            raise UserError("; ".join(f"{source}: {'; '.join(problems)}" for source, problems in lists.items()))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a tree, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for entry in value.items() for text in _texts(entry))
    elif isinstance(value, list | tuple | set):
        yield from (text for part in value for text in _texts(part))


class _Written(NamedTuple):
    """A value that was set: the source, and which layer that is."""

    value: Any
    source: str
    place: int


def _converted(setting: Setting, value: Any) -> Any:
    """Return a value in the type of its setting; a ``ValueError`` if it cannot be."""
    if setting.field.annotation is not bool and _holds_truth(value):
        raise ValueError("true and false are no numbers")  # to Python they are 1 and 0
    return _adapter(setting).validate_python(value)


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and any(isinstance(member, bool) for member in value))


def _adapter(setting: Setting) -> TypeAdapter[Any]:
    kind: Any = Annotated[setting.field.annotation, setting.field]
    return TypeAdapter(kind)


def _refusal(setting: Setting, value: Any, error: ValueError) -> str:
    """Return a value, and what it must be instead."""
    reasons = [detail.get("ctx", {}).get("error") for detail in error.errors()] if hasattr(error, "errors") else []
    ours = [str(reason) for reason in reasons if isinstance(reason, UserError)]
    return ours[0] if ours else f"{shown(value)}: it must be {_allowed(setting, value)}"


def _allowed(setting: Setting, value: Any) -> str:
    words = allowed(_adapter(setting).json_schema())
    return f"{words}; put it in quotes" if words.startswith("text") and isinstance(value, int | float | date) else words
