"""Options that several commands share, and what they hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from diffmm_dist.config.schema import LARGEST_COUNT
from diffmm_dist.errors import UserError, closest

Out = Annotated[str, typer.Option(help="Where to write: a folder or an s3:// prefix.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
ConfigFile = Annotated[Path, typer.Option("--config", help="YAML file; see docs/configuration.md.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, winning over the file.")]


def positive_numbers(text: str, option: str) -> list[int]:
    """Return comma-separated whole numbers from 1 on, ascending and each once.

    Raises:
        UserError: they are something else; it names the option.
    """
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
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
