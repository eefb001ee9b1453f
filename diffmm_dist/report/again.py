"""The command that repeats a run."""

import shlex
from typing import Any

import yaml

from diffmm_dist.config.render import flatten
from diffmm_dist.runs.config import Config

_FILE, _END = "again.yaml", "END_OF_SETTINGS"
_ALWAYS = ("data.path", "model.name")


def chosen_settings(config: Config) -> dict[str, Any]:
    """Return the settings that are not what they are where nobody chooses them, by their whole keys."""
    plain: dict[str, Any] = {"data": {"path": config.data.path}, "run": {"path": config.run.path}}
    defaults = flatten(Config.model_validate({**plain, "model": {"name": config.model.name}}))
    return {key: value for key, value in flatten(config).items() if key in _ALWAYS or value != defaults.get(key)}


def command_again(config: Config, uri: str) -> str:
    """Return shell commands that write a configuration and train it into a new run folder.

    Args:
        config: of the run.
        uri: its folder; the new one is beside it.
    """
    tree: dict[str, Any] = {}
    for key, value in {**chosen_settings(config), "run.path": f"{uri}-again"}.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    text = yaml.safe_dump(tree, sort_keys=False, width=100)
    train = shlex.join(["python", "launch.py", "train", "--config", _FILE])
    return f"cat > {_FILE} <<'{_END}'\n{text}{_END}\n{train}"
