"""Packages that are not installed: imports of them fail, and nothing knows their version."""

from pathlib import Path

_SITE = """
import importlib.metadata
import sys

HIDDEN = {names!r}
sys.modules.update(dict.fromkeys(HIDDEN))
found = importlib.metadata.Distribution.from_name


def from_name(name):
    if name.replace("-", "_").lower() in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)


importlib.metadata.Distribution.from_name = staticmethod(from_name)
"""


def without(folder, *names):
    """The environment of a process, and of those that it starts, in which these packages are missing."""
    (Path(folder) / "sitecustomize.py").write_text(_SITE.format(names=names))
    return {"PYTHONPATH": str(folder)}
