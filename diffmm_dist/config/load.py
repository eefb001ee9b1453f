"""Reading a configuration: YAML with ``extends``, then ``section.key=value`` overrides, then one check of it all."""

from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from diffmm_dist.config import yaml_text
from diffmm_dist.config.form import Form, Setting, variant_sections
from diffmm_dist.config.names import Names
from diffmm_dist.config.section import Section, broken_rules
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.places import settle_local
from diffmm_dist.regular_files import read_regular
from diffmm_dist.safe_text import check_word, refuse_secrets
from diffmm_dist.words import allowed, shortened, shown

Tree = dict[str, Any]
Root = TypeVar("Root", bound=Section)
COMMAND_LINE = "command line"
_MOST_FILES = 20


class Layer(NamedTuple):
    """Settings from one place; a later layer wins over an earlier one.

    Attributes:
        source: the file, or the command line.
        tree: its sections; on the command line the whole key of each setting.
    """

    source: str
    tree: Tree


def load_config(root: type[Root], path: str | Path | None, overrides: Sequence[str] = ()) -> Root:
    """Read a configuration file and apply overrides.

    Args:
        root: the kind of configuration.
        path: YAML file; ``extends: OTHER.yaml`` inside it is relative to the file. None starts from the defaults.
        overrides: ``section.key=value``, with as many sections as there are, the value in YAML.

    Raises:
        UserError: naming every mistake at once, each with its key, by the file or command line that it stands in.
    """
    layers = read_layers(Path(path), seen=()) if path is not None else []
    check = _Check(root, COMMAND_LINE if path is None else str(path))
    return check.config([*layers, Layer(COMMAND_LINE, check.overrides(overrides))])


def config_from_tree(root: type[Root], tree: Tree, *, source: str) -> Root:
    """Check an already parsed configuration."""
    return _Check(root, source).config([Layer(source, tree)])


def mistake_in(config: Section, key: str, value: Any) -> str | None:
    """Return what is wrong with a value for one setting of a configuration, by itself; None if nothing is.

    Args:
        config: the whole configuration.
        key: of the setting, with its section; one that does not exist is a mistake.
        value: which it may have.
    """
    root = type(config)
    form = Form(root, {section: getattr(config, section).name for section in variant_sections(root)})
    return _Check(root, COMMAND_LINE).of_one(key, value, form)


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
    tree = parsed(text, str(path))
    base = tree.pop("extends", None)
    if base is None:
        return [Layer(str(path), tree)]
    if not isinstance(base, str):
        raise UserError(f"{path}: 'extends' must name one YAML file, not {shown(base)}")
    below = path.parent / settle_local(base)
    return [*read_layers(below, (*seen, place)), Layer(str(path), tree)]


def parsed(text: str, source: str) -> Tree:
    """Return the sections of a YAML text, which extends no other.

    Raises:
        UserError: it is no YAML, or holds no sections.
    """
    refuse_secrets(text, where=source)
    try:
        tree = yaml_text.parse(text)
    except ValueError as error:
        raise UserError(f"{source} is not valid YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        what = "but is empty" if tree is None else f"not {shown(tree)}"
        raise UserError(f"{source} must hold sections such as 'data:' and 'model:', {what}")
    return tree


class _Check(Generic[Root]):
    """Finds every mistake of a configuration, by the place that it stands in.

    Args:
        root: the kind of configuration.
        source: the place that is to be completed where something is missing.
    """

    def __init__(self, root: type[Root], source: str) -> None:
        self._root = root
        self._names = Names(root)
        self._source = source
        self._problems: dict[str, list[str]] = {}
        self._nameless: set[str] = set()  # sections whose name is none

    def _add(self, source: str, problem: str) -> None:
        self._problems.setdefault(source, []).append(problem)

    def overrides(self, texts: Sequence[str]) -> Tree:
        """Return the values of ``section.key=value`` texts by their keys, and note what is wrong with the others."""
        tree: Tree = {}
        others: list[str] = []
        for text in texts:
            refuse_secrets(text, where=COMMAND_LINE)
            key, equals, value = text.partition("=")
            if not equals or "." not in key or not all(key.split(".")) or key != key.strip() or key.startswith("-"):
                others.append(text)
                continue
            try:
                tree[key] = yaml_text.parse(value)
            except ValueError:
                self._add(COMMAND_LINE, f"the value of '{shortened(text)}' is not valid YAML")
        for problem in self._names.malformed(others):
            self._add(COMMAND_LINE, problem)
        return tree

    def config(self, layers: Sequence[Layer]) -> Root:
        """Return the configuration of some layers, the last one winning.

        Raises:
            UserError: with all mistakes, also those noted before.
        """
        for layer in layers:
            for text in _texts(layer.tree):  # escapes in the file may have hidden it so far
                refuse_secrets(text, where=layer.source)
        form, layers = self._form(layers)
        written: dict[str, _Written] = {}
        for place, layer in enumerate(layers):
            written |= {key: _Written(value, layer.source, place) for key, value in self._known(layer, form)}
        values = self._values(written, form)
        rules = tuple(one for section in form.sections.values() for one in section.rules)
        for one, sentence in broken_rules(rules, values):
            last = max((written[key] for key in one.keys if key in written), key=lambda found: found.place)
            self._add(last.source, sentence)
        self._raise_all([layer.source for layer in layers])
        return self._root.model_validate(_nested(values))

    def of_one(self, key: str, value: Any, form: Form) -> str | None:
        """Return what is wrong with one setting, if anything is."""
        for name, found in self._known(Layer(COMMAND_LINE, {key: value}), form):
            try:
                _converted(form.settings[name], found)
            except ValueError as error:
                return f"'{name}' is {_refusal(form.settings[name], found, error)}"
        return next(iter(self._problems.get(COMMAND_LINE, [])), None)

    def _form(self, layers: Sequence[Layer]) -> tuple[Form, Sequence[Layer]]:
        """Return the form that is meant, and what of the layers is for it; note a name of a variant that is none.

        A layer that names another variant begins its section anew: what earlier ones say there is for theirs.
        """
        names = {}
        for section, variants in variant_sections(self._root).items():
            name, begin, source = variants.default, 0, self._source
            for place, layer in enumerate(layers):
                for written in _names_written(layer, section):
                    begin = place if written != name else begin
                    name, source = written, layer.source
            if isinstance(name, str) and name in variants.forms:
                names[section] = name
            else:
                self._nameless.add(section)
                choices = allowed({"enum": list(variants.forms)})
                self._add(source, f"'{section}.name' is {shown(name)}: it must be {choices}")
            layers = [_without(layer, section) if place < begin else layer for place, layer in enumerate(layers)]
        return Form(self._root, names), layers

    def _known(self, layer: Layer, form: Form) -> Iterator[tuple[str, Any]]:
        """Yield what a layer sets, and note the sections and keys that do not exist."""
        if layer.source != COMMAND_LINE:
            yield from self._known_below("", layer.tree, layer.source, form)
            return
        for key, value in layer.tree.items():
            if key in form.settings:
                yield key, value
            elif key in form.sections:
                inner = next(setting for setting in form.settings if setting.startswith(f"{key}."))
                self._add(layer.source, f"'{key}' is a section; set its keys, such as {inner}=VALUE")
            else:
                self._unknown(key, layer.source, form)

    def _known_below(self, section: str, tree: Tree, source: str, form: Form) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            key = f"{section}.{name}" if section else str(name)
            if name not in form.sections[section].model_fields:
                self._unknown_below(key, value, source, form, is_dotted="." in str(name))
            elif key in form.settings:
                yield key, value
            elif isinstance(value, dict | None):
                yield from self._known_below(key, value or {}, source, form)
            else:
                self._add(source, f"'{key}' is {shown(value)}: it must be a section with keys under it")

    def _unknown_below(self, key: str, value: Any, source: str, form: Form, *, is_dotted: bool) -> None:
        """Note a key of a file that the form does not have, or the keys under it where these stand elsewhere now."""
        if is_dotted:
            self._add(source, self._names.unknown_section(key, form))
            return
        inner = value if isinstance(value, dict) and "." not in key else {}
        moved = [f"{key}.{name}" for name in inner if self._names.is_moved(f"{key}.{name}")]
        for unknown in moved or [key]:
            self._unknown(unknown, source, form)

    def _unknown(self, key: str, source: str, form: Form) -> None:
        """Note a key that the form does not have, unless its section's own name is the mistake."""
        section = key.partition(".")[0]
        if section in self._nameless:
            return
        if section in form.sections or self._names.is_moved(key):
            self._add(source, self._names.unknown_key(key, form))
        else:
            self._add(source, self._names.unknown_section(section if source == COMMAND_LINE else key, form))

    def _values(self, written: dict[str, "_Written"], form: Form) -> dict[str, Any]:
        """Return all values that are right, converted, and note the others and what is missing."""
        values = {}
        for setting in form.settings.values():
            if setting.key not in written or setting.key.removesuffix(".name") in self._nameless:
                if setting.field.is_required():
                    self._add(self._source, f"'{setting.key}' is missing; set it in the file or as {setting.key}=VALUE")
                else:
                    values[setting.key] = setting.field.default
                continue
            one = written[setting.key]
            try:
                values[setting.key] = _converted(setting, one.value)
            except ValueError as error:
                self._add(one.source, f"'{setting.key}' is {_refusal(setting, one.value, error)}")
        return values

    def _raise_all(self, sources: Sequence[str]) -> None:
        """Raise what was noted, if anything, in the order of the sources."""
        lists = {source: self._problems[source] for source in dict.fromkeys([*sources, *self._problems])
                 if source in self._problems}  # fmt: skip
        if lists:
            raise UserError("; ".join(f"{source}: {'; '.join(problems)}" for source, problems in lists.items()))


def _names_written(layer: Layer, section: str) -> Iterator[Any]:
    """Yield the key ``name`` of a section, if a layer sets it."""
    on_command_line = layer.source == COMMAND_LINE
    tree, key = (layer.tree, f"{section}.name") if on_command_line else (layer.tree.get(section, {}), "name")
    if isinstance(tree, dict) and key in tree:
        yield tree[key]


def _without(layer: Layer, section: str) -> Layer:
    """Return what a layer says of the other sections."""
    kept = {key: value for key, value in layer.tree.items() if key.partition(".")[0] != section}
    return Layer(layer.source, kept)


def _nested(values: dict[str, Any]) -> Tree:
    """Return values by dotted keys as a tree."""
    tree: Tree = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return tree


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
    return _adapter(setting.field).validate_python(value)


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and any(isinstance(member, bool) for member in value))


@cache
def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind)


def _refusal(setting: Setting, value: Any, error: ValueError) -> str:
    """Return a value, and what it must be instead."""
    reasons = [detail.get("ctx", {}).get("error") for detail in error.errors()] if hasattr(error, "errors") else []
    ours = [str(reason) for reason in reasons if isinstance(reason, UserError)]
    return ours[0] if ours else f"{shown(value)}: it must be {_allowed(setting, value)}"


def _allowed(setting: Setting, value: Any) -> str:
    words = allowed(_adapter(setting.field).json_schema())
    return f"{words}; put it in quotes" if words.startswith("text") and isinstance(value, int | float | date) else words
