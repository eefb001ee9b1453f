"""The space of a search: which settings of a configuration vary, and between what (docs/tuning.md)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmm_dist.config import yaml_text
from diffmm_dist.config.load import mistake_in
from diffmm_dist.config.render import flatten
from diffmm_dist.errors import UserError, closest, one_line
from diffmm_dist.regular_files import read_regular
from diffmm_dist.runs.config import Config, config_from_tree
from diffmm_dist.safe_text import refuse_secrets
from diffmm_dist.words import shortened, shown

FORMS = ("uniform", "log", "int", "choice")
# What a form may have beside it; `log` beside `int` spaces whole numbers evenly by their logarithms.
_BESIDE: dict[str, tuple[str, ...]] = {"uniform": ("step",), "log": (), "int": ("step", "log"), "choice": ()}
_MOST_CHOICES = 1000
_TIE = 1e-6
# The other settings say on what and for how long is trained, and by which measure one trial is better than another.
_SEARCHED = ("model.", "train.", "data.modalities")
_FIXED = {"model.name", "model.teacher", "train.epochs", "train.patience"}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both of them among these.

    Attributes:
        low: the least.
        high: the largest.
        whole: whole numbers only.
        log: spaced evenly by their logarithms.
        step: from ``low`` on, None for none.
    """

    low: float
    high: float
    whole: bool = False
    log: bool = False
    step: float | None = None

    def ends(self) -> Iterator[Any]:
        """Yield values with which a setting can do if it can do with all."""
        yield from (self.low, self.high)
        if not self.whole and self.step is None and self.low < self.high:
            yield self.low + 0.3819660112501051 * (self.high - self.low)  # no whole number, where the ends are

    def holds(self, value: Any) -> bool:
        """Return whether a value of the setting is one of them."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step is not None else 0.0
        return abs(steps - round(steps)) < _TIE

    def as_tree(self) -> dict[str, Any]:
        """Return it as it is written."""
        form = "int" if self.whole else "log" if self.log else "uniform"
        tree: dict[str, Any] = {form: [self.low, self.high]}
        tree |= {"step": self.step} if self.step is not None else {}
        return tree | ({"log": True} if self.whole and self.log else {})


@dataclass(frozen=True)
class Choice:
    """One of several values of any kind, in no order."""

    values: tuple[Any, ...]

    def ends(self) -> Iterator[Any]:
        """Yield all of them."""
        yield from self.values

    def holds(self, value: Any) -> bool:
        """Return whether a value of the setting is one of them."""
        return value in self.values

    def as_tree(self) -> dict[str, Any]:
        """Return it as it is written."""
        return {"choice": list(self.values)}


Space = dict[str, Range | Choice]


def read_space(path: str, config: Config) -> Space:
    """Read a file with a space.

    Args:
        path: the YAML file.
        config: the configuration whose settings vary.

    Returns:
        By the key of each setting, between what it varies.

    Raises:
        UserError: naming every mistake at once.
    """
    try:
        text = read_regular(Path(path), limit=yaml_text.LARGEST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the space {path}: {one_line(error)}") from error
    refuse_secrets(text, where=path)
    try:
        tree = yaml_text.parse(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from error
    return space_of(tree, config, source=path)


def space_of(tree: Any, config: Config, *, source: str) -> Space:
    """Check a parsed space; the arguments and errors are those of ``read_space``."""
    if not isinstance(tree, dict) or not tree:
        what = "but is empty" if not tree else f"not {shown(tree)}"
        raise UserError(f"{source} must hold settings such as 'train.learning_rate: {{log: [1e-4, 1e-2]}}', {what}")
    space: Space = {}
    mistakes: list[str] = []
    for key, written in tree.items():
        try:
            space[str(key)] = _dimension(str(key), written, config)
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError(f"{source}: {'; '.join(mistakes)}")
    return space


def as_tree(space: Space) -> dict[str, Any]:
    """Return a space as it is written, in one form."""
    return {key: dimension.as_tree() for key, dimension in space.items()}


def own_values(space: Space, config: Config) -> dict[str, Any] | None:
    """Return the values that a configuration itself has, None where the space does not hold them."""
    settings = flatten(config)
    values = {key: settings[key] for key in space}
    return values if all(space[key].holds(value) for key, value in values.items()) else None


def with_values(config: Config, values: Mapping[str, Any], *, source: str) -> Config:
    """Return a configuration with other values by dotted keys.

    Raises:
        UserError: they do not fit together; ``source`` says whose they are.
    """
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner[section]
        inner[name] = value
    return config_from_tree(tree, source=source)


def _dimension(key: str, written: Any, config: Config) -> Range | Choice:
    """Return between what a setting varies; the error says what is wrong with it."""
    if isinstance(written, dict) and not {*FORMS} & {*written} and key in type(config).model_fields:
        raise UserError(f"'{key}' is a section; write whole keys, such as '{key}.{next(iter(written), 'KEY')}: ...'")
    unknown = mistake_in(config, key, None)
    if unknown is not None and unknown.startswith(("unknown key", f"'{key}' is for ")):
        raise UserError(unknown)
    if not key.startswith(_SEARCHED) or key in _FIXED:
        raise UserError(
            f"'{shortened(key)}' is not searched: trials would not be measured alike; set it in the configuration, and "
            "search settings of model and train"
        )
    dimension = _read(key, written)
    wrong = dict.fromkeys(mistake for end in dimension.ends() if (mistake := mistake_in(config, key, end)))
    if wrong:
        raise UserError("; ".join(wrong))
    return dimension


def _read(key: str, written: Any) -> Range | Choice:
    forms = [form for form in FORMS if isinstance(written, dict) and form in written]
    form = "int" if forms == ["log", "int"] else forms[0] if len(forms) == 1 else None
    if form is None:
        names = list(written) if isinstance(written, dict) else []
        nearest = closest(str(names[0]), list(FORMS)) if len(names) == 1 else ""
        raise UserError(f"'{key}' is {shown(written)}: it must be one of {_examples()}{nearest}")
    odd = [str(name) for name in written if name != form and name not in _BESIDE[form]]
    if odd:
        raise UserError(f"'{key}' has {', '.join(map(shortened, odd))} beside {form}, which takes {_beside(form)}")
    return _choice(key, written[form]) if form == "choice" else _range(key, form, written)


def _examples() -> str:
    return "{uniform: [0, 1]}, {log: [1e-4, 1e-2]}, {int: [1, 4]}, {choice: [a, b]}"


def _beside(form: str) -> str:
    return " and ".join(_BESIDE[form]) or "nothing"


def _choice(key: str, values: Any) -> Choice:
    if not isinstance(values, list) or not 2 <= len(values) <= _MOST_CHOICES:
        raise UserError(f"'{key}' has choice {shown(values)}: it must be a list of 2 to {_MOST_CHOICES} values")
    if any(value == other for place, value in enumerate(values) for other in values[:place]):
        raise UserError(f"'{key}' has choice {shown(values)}, which names a value twice; name each once")
    return Choice(tuple(values))


def _range(key: str, form: str, written: Mapping[str, Any]) -> Range:
    ends = written[form]
    whole = form == "int"
    kind = "whole numbers" if whole else "numbers"
    numbers = [_number(end, whole=whole) for end in ends] if isinstance(ends, list) else []
    low, high = numbers if len(numbers) == 2 else (None, None)
    if low is None or high is None or not low < high:
        raise UserError(f"'{key}' has {form} {shown(ends)}: it must be a list of two {kind}, the lower one first")
    log = form == "log" or written.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"'{key}' has log {shown(log)}: it must be true or false")
    if log and low <= 0:
        raise UserError(f"'{key}' has a lower end of {low:g}: on a logarithmic scale it must be above 0")
    return Range(low, high, whole=whole, log=log, step=_step(key, written, low, high, whole=whole, log=log))


def _step(key: str, written: Mapping[str, Any], low: float, high: float, *, whole: bool, log: bool) -> float | None:
    if written.get("step") is None:
        return None
    step: float | None = _number(written["step"], whole=whole)
    if step is None or not 0 < step <= high - low:
        kind = "a whole number" if whole else "a number"
        raise UserError(
            f"'{key}' has step {shown(written['step'])}: it must be {kind} above 0 and no more than the range"
        )
    if log:
        raise UserError(f"'{key}' has step and log, which exclude one another; leave one of them out")
    steps = (high - low) / step
    if abs(steps - round(steps)) > _TIE:
        raise UserError(f"'{key}' has step {step:g}, with which {high:g} is not reached from {low:g}; change one")
    return step


def _number(value: Any, *, whole: bool) -> Any:
    """Return a number, None for what is none; YAML takes 1e-4 for a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not abs(number) < 1e300:
        return None
    if whole:
        return int(number) if number == int(number) else None
    return number
