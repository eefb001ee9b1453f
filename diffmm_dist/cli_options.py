"""Options that several commands share, and what they hold."""

import os
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import typer

from diffmm_dist.cli_completion import files_and_settings, yaml_files
from diffmm_dist.cli_usage import UsageError
from diffmm_dist.config.section import LARGEST_COUNT
from diffmm_dist.errors import UserError, closest
from diffmm_dist.places import settle, settle_local, settle_to_keep
from diffmm_dist.runs.config import Config, load_config

Value = TypeVar("Value", str | None, list[str] | None)


def _settled(parameter: typer.CallbackParam, value: Value, settled: Callable[[str], str]) -> Value:
    """Return the places of an option or argument in their one form; an error names it."""
    try:
        if isinstance(value, list):
            return [settled(one) for one in value]
        return None if value is None else settled(value)
    except UserError as error:
        raise UserError(f"{max(parameter.opts, key=len)} {error}") from error


def place(parameter: typer.CallbackParam, value: Value) -> Value:
    """Settle what is to be read."""
    return _settled(parameter, value, settle)


def local_place(parameter: typer.CallbackParam, value: Value) -> Value:
    """Settle what is to be read from, or written to, a local disk."""
    return _settled(parameter, value, settle_local)


def folder_to_write(parameter: typer.CallbackParam, value: Value) -> Value:
    """Settle where a folder is to be made."""
    return _settled(parameter, value, settle_to_keep)


def file_to_write(context: typer.Context, parameter: typer.CallbackParam, value: Value) -> Value:
    """Settle where a file is to be made, and find out before any work whether it can be."""
    if context.resilient_parsing:  # a shell asks what the next word may be
        return value
    from diffmm_dist.storage import check_file

    value = _settled(parameter, value, settle_to_keep)
    if isinstance(value, str):
        check_file(value)
    return value


Out = Annotated[
    str,
    typer.Option(help="Where to write: a folder or an address such as s3://BUCKET/PREFIX.", callback=folder_to_write),
]
JsonOut = Annotated[str, typer.Option(help="JSON file to write.", callback=file_to_write)]
Dataset = Annotated[str, typer.Argument(help="A prepared dataset.", callback=place)]
Run = Annotated[str, typer.Argument(help="Run folder.", callback=place)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line, and nothing else.")]
ConfigFile = Annotated[
    str | None,
    typer.Option("--config", help="YAML file, if not given as FILE.", callback=local_place, autocompletion=yaml_files),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE] [section.key=value]...",
        help="YAML file, and settings that win over it; see docs/configuration.md.",
        autocompletion=files_and_settings,
    ),
]


def configured(config: str | None, overrides: list[str] | None) -> Config:
    """Return the configuration that a command line gives; the arguments and errors are those of ``file_and_overrides``.

    Raises:
        UserError: naming every mistake in it at once; or its run would go with this command.
    """
    settings = load_config(*file_and_overrides(config, overrides))
    try:
        settle_to_keep(settings.run.path)
    except UserError as error:
        raise UserError(f"run.path={error}") from error
    return settings


def file_and_overrides(config: str | None, words: list[str] | None) -> tuple[str, list[str]]:
    """Return the configuration file, which stands behind ``--config`` or alone, and the settings beside it.

    Args:
        config: what stands behind ``--config``.
        words: everything else; of these a file is what has no ``=`` and ends as YAML files do, and any file there is.

    Raises:
        UserError: several files are given.
        UsageError: none is.
    """
    files = [word for word in words or [] if _is_file(word)]
    named = list(dict.fromkeys([*([config] if config is not None else []), *map(settle_local, files)]))
    if len({os.path.realpath(name) for name in named}) > 1:
        raise UserError(f"{' and '.join(named)} are both given as configuration; name one, which may extend the other")
    if not named:
        raise UsageError("no configuration is named; give a YAML file, such as configs/demo.yaml")
    return named[0], [word for word in words or [] if word not in files]


def _is_file(word: str) -> bool:
    return ("=" not in word and word.endswith((".yaml", ".yml"))) or os.path.isfile(os.path.expanduser(word))


def positive_numbers(text: str, option: str) -> list[int]:
    """Return comma-separated whole numbers from 1 on, ascending and each once.

    Raises:
        UserError: they are something else; it names the option.
    """
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) if part.isdecimal() and len(part) < 20 else 0 for part in parts]
    if not 1 <= min(numbers) <= max(numbers) <= LARGEST_COUNT:
        raise UserError(f"{option} {text} must be whole numbers of at least 1, such as 10,20,50")
    return sorted(set(numbers))


Choice = TypeVar("Choice", bound=str)


def one_of(text: str, choices: Sequence[Choice], option: str) -> Choice:
    """Return the choice that a text names.

    Raises:
        UserError: it names none; the error names the option and the choices.
    """
    for choice in choices:
        if text == choice:
            return choice
    raise UserError(f"{option} {text} is none of {', '.join(choices)}{closest(text, list(choices))}")
