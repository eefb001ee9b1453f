"""The models by name; what they are made of is loaded when it is needed.

A model is a folder: ``settings.py`` holds its class ``Settings``, ``recipe.py`` what builds and measures it.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from diffmm_dist.config.section import Section

# Names of models, and the packages that they are made of.
FOLDERS = {
    "diffmm": "diffmm_dist.models.diffmm",
    "adagcl": "diffmm_dist.models.adagcl",
    "diffkg": "diffmm_dist.models.diffkg",
    "promptmm": "diffmm_dist.models.promptmm",
    "lightgcn": "diffmm_dist.models.lightgcn",
    "popularity": "diffmm_dist.models.popularity",
}


class _SettingsByName(Mapping[str, type[Section]]):
    """Each model's settings."""

    def __getitem__(self, name: str) -> type[Section]:
        settings: type[Section] = import_module(f"{FOLDERS[name]}.settings").Settings
        return settings

    def __iter__(self) -> Iterator[str]:
        return iter(FOLDERS)

    def __len__(self) -> int:
        return len(FOLDERS)

    def default(self) -> Section:
        """The settings of a run that names no model."""
        return self[next(iter(self))]()


SETTINGS = _SettingsByName()


def entry_of(name: str) -> Any:
    """Return a model's ``ModelEntry``, which takes its own settings."""
    return import_module(f"{FOLDERS[name]}.recipe").ENTRY
