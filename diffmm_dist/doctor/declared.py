"""What the installed package says it needs, and whether it is here; nothing is imported for that."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from diffmm_dist import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PACKAGE = "diffmm-dist"
_NOT_FOR_USERS = "dev"


@dataclass(frozen=True)
class Declared:
    """What the package's metadata declare.

    Attributes:
        python: the Pythons that it is for, such as ``>=3.10``.
        packages: what it needs on this machine, by name.
        extras: what each of its extras needs.
        unknown: why nothing of that is known; empty if it is.
    """

    python: str = ""
    packages: "Mapping[str, Requirement]" = field(default_factory=dict)
    extras: "Mapping[str, list[Requirement]]" = field(default_factory=dict)
    unknown: str = ""

    def refusal(self, name: str, version: str) -> str:
        """Return why a version of a package is none that is declared; empty if it is, or if that is not known."""
        needed = self.packages.get(name)
        if needed is None or needed.specifier.contains(version, prereleases=True):
            return ""
        return f"{version} is not {needed.specifier}, which has been tried; install one of these"


def declared() -> Declared:
    """Return what is declared; a tree that was never installed, or not as it is now, says nothing."""
    try:
        found = distribution(_PACKAGE)
    except PackageNotFoundError:
        return Declared(unknown="the program runs from a tree that is not installed, so versions are not compared")
    if found.version != __version__ or _is_older(found, Path(__file__).parents[2] / "pyproject.toml"):
        return Declared(
            unknown="what is installed as this program is not this tree as it stands, so versions are not compared; "
            "install it again"
        )
    extras = found.metadata.get_all("Provides-Extra") or []
    return Declared(
        str(found.metadata["Requires-Python"] or ""),
        {needed.name: needed for needed in _needed(found)},
        {extra: _needed(found, extra) for extra in extras if extra != _NOT_FOR_USERS},
    )


def _is_older(found: Distribution, project: Path) -> bool:
    """Tell whether the metadata were made of another ``pyproject.toml`` than the one that a tree has."""
    if sys.version_info < (3, 11) or not project.is_file():
        return False
    import tomllib
    from packaging.requirements import Requirement

    now = {Requirement(text) for text in tomllib.loads(project.read_text())["project"]["dependencies"]}
    return not now <= {Requirement(text) for text in found.requires or []}


def _needed(found: Distribution, extra: str = "") -> "list[Requirement]":
    """Return what a package needs on this machine, or what an extra of it needs on top."""
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in found.requires or []]
    plain = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [one for one in needed if one not in plain and one.marker and one.marker.evaluate({"extra": extra})]


def lacking(needed: "Requirement") -> list[str]:
    """Return what is missing of a requirement, with that of its own extras, or has another version."""
    version = installed(needed.name)
    if version is None:
        return [f"{needed.name} is missing"]
    if not needed.specifier.contains(version, prereleases=True):
        return [f"{needed.name} {version} is not {needed.specifier}"]
    below = [one for extra in sorted(needed.extras) for one in _needed(distribution(needed.name), extra)]
    return [f"{one.name} is missing" for one in below if installed(one.name) is None]


def installed(name: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None
