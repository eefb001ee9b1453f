"""Completion in shells: the scripts, and what can stand behind a command that takes a configuration.

A script hands the line over as it was typed, in the form that Typer has for fish, and gets a candidate with its help on
each line. Typer's own script for bash hands over bash's words, which are cut at every ``=``.
"""

import glob
import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from diffmm_dist.config.form import Setting, every_form
from diffmm_dist.errors import UserError, closest
from diffmm_dist.monitoring.log import say
from diffmm_dist.runs.config import Config

PROGRAM = "diffmm-dist"
VARIABLE = "_DIFFMM_DIST_COMPLETE"
# What a script sets; help is wrapped at so many columns, and a candidate is to have one line.
ASKED = {VARIABLE: "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args", "COLUMNS": "1000"}
LINE = "_TYPER_COMPLETE_ARGS"
_ASK = f"{' '.join(f'{name}={value}' for name, value in ASKED.items())} {LINE}="
_BASH = f"""\
_diffmm_dist_completion() {{
    local IFS=$'\\n' line="${{COMP_LINE:0:COMP_POINT}}" breaks="${{COMP_WORDBREAKS//[!=:]/}}" word begun="" found
    # Where bash takes = or : for the end of a word, what stands before is not replaced.
    word="${{line##*[[:space:]]}}"
    [[ -z "$breaks" ]] || begun="${{word%"${{word##*["$breaks"]}}"}}"
    COMPREPLY=()
    for found in $({_ASK}"$line" "$1" 2> /dev/null); do
        found="${{found%%$'\\t'*}}"
        COMPREPLY+=("${{found#"$begun"}}")
    done
    [[ "${{COMPREPLY[0]-}}" != *[.=/] ]] || compopt -o nospace 2> /dev/null
}}
complete -o default -F _diffmm_dist_completion {PROGRAM}
"""
_ZSH = f"""\
#compdef {PROGRAM}
_diffmm_dist_completion() {{
    local found
    local -a begun whole
    for found in "${{(@f)$({_ASK}"${{words[1,$CURRENT]}}" "${{words[1]}}" 2> /dev/null)}}"; do
        found="${{found%%$'\\t'*}}"
        case "$found" in
            '') ;;
            *[.=/]) begun+=("$found") ;;
            *) whole+=("$found") ;;
        esac
    done
    (( $#begun + $#whole )) || {{ _files; return }}
    (( $#begun )) && compadd -S '' -a begun
    (( $#whole )) && compadd -a whole
    return 0
}}
compdef _diffmm_dist_completion {PROGRAM}
"""
_FISH = f"""\
function __diffmm_dist_completion
    env {_ASK}(commandline -cp | string collect) {PROGRAM} 2> /dev/null
end
complete --command {PROGRAM} --arguments "(__diffmm_dist_completion)"
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def answer(app: typer.Typer) -> None:
    """If a shell has started this process to have a word completed, answer and end."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
        app(complete_var=VARIABLE)


def _shells(incomplete: str) -> list[str]:
    return [name for name in SCRIPTS if name.startswith(incomplete)]


def _show(context: typer.Context, shell: str | None) -> None:
    if shell is None or context.resilient_parsing:
        return
    if shell not in SCRIPTS:
        raise UserError(f"--show-completion {shell} is none of {', '.join(SCRIPTS)}{closest(shell, list(SCRIPTS))}")
    say(SCRIPTS[shell], end="")
    raise typer.Exit


ShowCompletion = Annotated[
    str | None,
    typer.Option(
        metavar="SHELL",
        help=f"Print what completes commands and settings in {', '.join(SCRIPTS)}, and end.",
        is_eager=True,
        callback=_show,
        autocompletion=_shells,
    ),
]


def yaml_files(incomplete: str) -> list[str]:
    """Return the YAML files, and the folders that may hold some, that a word begins."""
    found = sorted(glob.glob(f"{glob.escape(incomplete)}*"))
    folders = [f"{path}/" for path in found if os.path.isdir(path)]
    return [path for path in found if path.endswith((".yaml", ".yml")) and os.path.isfile(path)] + folders


def files_and_settings(context: typer.Context, incomplete: str) -> list[str]:
    """Return what can stand behind a command that takes a configuration.

    That is a file, a section, then a key of it with ``=``, and behind that a value where there are few.

    Args:
        context: of the command, with the words before.
        incomplete: the word so far.
    """
    key, equals, _ = incomplete.partition("=")
    settings = _settings(context.params.get("overrides") or ())
    if equals:
        values = [value for setting in settings.get(key, ()) for value in _choices(setting)]
        return [f"{key}={value}" for value in dict.fromkeys(values)]
    if any(one.startswith(key) for one in settings) and "." in key:
        return [f"{one}=" for one in settings]
    return [*yaml_files(incomplete), *dict.fromkeys(f"{one.partition('.')[0]}." for one in settings)]


def _settings(words: Iterable[str]) -> Mapping[str, list[Setting]]:
    """Return what each key is in the models' forms, or in that of the model which the words before name."""
    forms = dict(every_form(Config))
    named = [word.partition("=")[2] for word in words if word.startswith("model.name=")]
    found: dict[str, list[Setting]] = {}
    for name, form in forms.items():
        for key, setting in form.settings.items():
            if key == "model.name" or name in named or not forms.keys() & set(named):
                found.setdefault(key, []).append(setting)
    return found


def _choices(setting: Setting) -> list[str]:
    """Return the values of a setting as they are written in YAML, if there are few."""
    kind: Any = Annotated[setting.field.annotation, setting.field]
    values = _values(TypeAdapter(kind).json_schema())
    return values if set(values) - {"null"} else []


def _values(schema: Mapping[str, Any]) -> list[str]:
    if "anyOf" in schema:
        return [value for member in schema["anyOf"] for value in _values(member)]
    if schema.get("type") in ("boolean", "null"):
        return {"boolean": ["true", "false"], "null": ["null"]}[schema["type"]]
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return [str(value) for value in values]
