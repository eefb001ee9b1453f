"""Whether a command of ours that a page shows can be read: its name, its options, its settings, its files."""

import re
import shlex
from typing import Any

import typer

from diffmm_dist.cli import app
from diffmm_dist.cli_options import file_and_overrides
from diffmm_dist.cli_usage import UsageError, usage_sentence
from diffmm_dist.config.form import every_form
from diffmm_dist.errors import UserError
from diffmm_dist.models.registry import FOLDERS
from diffmm_dist.runs.config import Config, load_config
from docs.hooks.command_line import commands
from tests.support.builders import ROOT

COMMANDS: dict[str, Any] = commands()
FIRST_WORDS = {name.split()[0] for name in COMMANDS}
SETTINGS = {key for _, form in every_form(Config) for key in (*form.sections, *form.settings)}


def options_of(command):
    """Return the options and arguments that a command has, in all their spellings."""
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


OPTIONS = {
    option for command in [typer.main.get_command(app), *COMMANDS.values()] for option in options_of(command)
} | {"--help"}


def name_and_rest(words):
    """Return the command that some words begin, None for none, and the words behind it."""
    for size in (2, 1):
        if (name := " ".join(words[:size])) in COMMANDS:
            return name, words[size:]
    return None, words


def mistake_of_command(text):
    """Return what is wrong with a command of ours: its name, an option, a setting, or a file of the project."""
    words = shlex.split(text.replace("[", "\\[") if "'" in text else text)
    name, rest = name_and_rest(words)
    if name is None:
        return None if words[0] in FIRST_WORDS and len(words) == 1 else f"no command {text}"
    own = options_of(COMMANDS[name])
    for word in rest:
        if word.startswith("--") and word.partition("=")[0] not in own:
            return f"{text}: no option {word}"
        if word.startswith("configs/") and not (ROOT / word).exists():
            return f"{text}: no file {word}"
        if not word.startswith("-") and "=" in word and (mistake := mistake_of_setting(word)):
            return mistake
    return None


def mistake_of_whole(text):
    """Return what is wrong with a command that a page shows whole, as the parser of the command line reads it."""
    words = shlex.split(text)
    name, rest = name_and_rest(words)
    if name is None:
        return f"no command {text}"
    try:
        with COMMANDS[name].make_context(name, list(rest)) as context:
            _check_settings(context.params)
    except UsageError as error:
        return f"{text}: {usage_sentence(error, words)}"
    except UserError as error:
        return f"{text}: {error}"
    return None


def _check_settings(given):
    """Load the configuration that a command names, with its settings; one in capitals stands for any."""
    if "overrides" not in given or not (given["overrides"] or given["config"]):
        return
    file, settings = file_and_overrides(given["config"], list(given["overrides"] or []))
    if not file.isupper():
        where = str(ROOT / file) if file.startswith("configs/") else None
        settings = [word for word in settings if not word.isupper()]
        load_config(where, [*(() if where else ("data.path=d", "run.path=r")), *settings])


def mistake_of_setting(text):
    """Return what is wrong with ``section.key`` or ``section.key=value``; None for what is none of both."""
    key, equals, value = text.partition("=")
    section, _, name = key.partition(".")
    if section not in Config.model_fields or not name or name in ("py", "json", "md", "yaml", "svg"):
        return None
    if key not in SETTINGS:
        return f"no setting {key}"
    if not equals or re.fullmatch(r"(s3://)?[A-Z/]+", value):
        return None
    return refusal_of(key, value)


def refusal_of(key, value):
    """Return why no model can be trained with a setting, or None if one can."""
    refusals = [_refusal_by(name, key, value) for name in FOLDERS]
    return None if None in refusals else refusals[0]


def _refusal_by(name, key, value):
    needed = [one for one in ("data.path=d", "run.path=r", f"model.name={name}") if not one.startswith(key)]
    try:
        load_config(None, [*needed, f"{key}={value}"])
    except UserError as error:
        return str(error)
    return None
