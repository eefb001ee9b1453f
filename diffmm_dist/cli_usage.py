"""What is wrong with a command line as such, in one sentence: options, arguments and commands that do not exist."""

import inspect
import typing
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer

from diffmm_dist.errors import closest, one_line
from diffmm_dist.runs.config import names
from diffmm_dist.words import allowed, shortened

# Typer brings a copy of click in its later releases; this is the class of either.
UsageError: Any = typer.BadParameter.__bases__[0]

_KINDS: dict[Any, str] = {int: "integer", float: "number", bool: "boolean"}


def usage_sentence(error: Any, words: Sequence[str]) -> str:
    """Return what is wrong with a command line, and the nearest that is right.

    Args:
        error: a ``UsageError`` of the parser.
        words: the command line without the program's name.
    """
    kind = type(error).__name__
    if kind == "NoSuchOption":
        text = _no_such_option(error, words)
    elif kind == "MissingParameter" and error.param is not None:
        text = _missing(error.param)
    elif kind == "BadParameter" and error.param is not None:
        text = _bad_value(error, words)
    else:
        text = one_line(error).rstrip(".")
        text = text[:1].lower() + text[1:].replace(". Did you mean", "; did you mean")
    command = " ".join(error.ctx.command_path.split()[1:]) if error.ctx is not None else ""
    return f"{text}; see `{' '.join(part for part in (command, '--help') if part)}`"


def _no_such_option(error: Any, words: Sequence[str]) -> str:
    """Return which option, or which setting where the command takes some, was meant."""
    name = error.option_name
    place = next((place for place, word in enumerate(words) if _names(word, name)), None)
    written, value = name, ""
    if place is not None:
        written, _, value = words[place].partition("=")
        following = words[place + 1] if place + 1 < len(words) else "-"
        if not value and not following.startswith("-") and "=" not in following:
            value = following
    parameters = error.ctx.command.params if error.ctx is not None else []
    options = [option for parameter in parameters for option in parameter.opts if option.startswith("--")]
    nearest = closest(written, [*options, "--help"])
    takes_settings = any(parameter.name == "overrides" for parameter in parameters)
    if takes_settings and (names().meant_by(written) or not nearest):
        nearest = names().as_settings(written, value)
    return f"there is no option {shortened(written)}{nearest}"


def _names(word: str, option: str) -> bool:
    """Tell whether a word of the command line is an option that the parser calls so; ``-lr`` it calls ``-l``."""
    written = word.partition("=")[0]
    return written == option or (len(option) == 2 and not word.startswith("--") and word.startswith(option))


def _missing(parameter: Any) -> str:
    what = max(parameter.opts, key=len)
    if parameter.param_type_name == "argument":
        return f"an argument is missing: {what} ({_help(parameter)})"
    return f"{what} is missing ({_help(parameter)})"


def _help(parameter: Any) -> str:
    return one_line(ValueError(parameter.help or "")).rstrip(".")


def _bad_value(error: Any, words: Sequence[str]) -> str:
    """Return which option has which value, and what it must be."""
    name = max(error.param.opts, key=len)
    schema = _schema(error)
    if schema is None:
        return f"{name}: {one_line(error).rstrip('.')}"
    written = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    written += [value for word, value in pairwise(words) if word in error.param.opts]
    what = f"{name} {shortened(written[-1])}" if written else name
    return f"{what}: it must be {allowed(schema)}"


def _schema(error: Any) -> dict[str, Any] | None:
    """Return the JSON schema of a parameter from the command's signature, None if it is no number or truth value."""
    function = inspect.unwrap(error.ctx.command.callback)
    hint = typing.get_type_hints(function, include_extras=True).get(error.param.name)
    members = typing.get_args(hint) or (hint,)
    kind = _KINDS.get(members[0])
    if kind is None:
        return None
    limits = {"minimum": "min", "maximum": "max"}
    found = {name: getattr(info, attribute, None) for info in members[1:] for name, attribute in limits.items()}
    return {"type": kind, **{name: value for name, value in found.items() if value is not None}}
