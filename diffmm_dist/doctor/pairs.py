"""What is known not to go together, each with its reason and what is done about it."""

import platform
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

from diffmm_dist.doctor.declared import installed
from diffmm_dist.doctor.finding import Finding, Mark


class Pair(NamedTuple):
    """Two things that do not go together.

    Attributes:
        met: whether both are here.
        mark: how bad that is.
        text: a sentence.
    """

    met: Callable[[], bool]
    mark: Mark
    text: str


def _dgl_with_other_torch() -> bool:
    dgl, torch = installed("dgl"), installed("torch")
    return bool(dgl and torch) and _series(str(dgl)) >= (2, 0) and _series(str(torch)) > (2, 2)


def _dgl_without_its_imports() -> bool:
    dgl = installed("dgl")
    return bool(dgl) and _series(str(dgl)) >= (2, 0) and None in (find_spec("pandas"), find_spec("packaging"))


def _no_pymetis() -> bool:
    return sys.version_info >= (3, 13) and sys.platform == "linux" and platform.machine() == "aarch64"


def _series(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


PAIRS = (
    Pair(
        _dgl_with_other_torch,
        "ok",
        "DGL 2 with torch after 2.2: its dgl.graphbolt does not load there; it is replaced, and nothing here uses it",
    ),
    Pair(
        _dgl_without_its_imports,
        "note",
        "DGL 2 without pandas and packaging, which it imports and does not declare; install both",
    ),
    Pair(
        lambda: sys.version_info >= (3, 13),
        "note",
        "DGL with Python 3.13 and later: it has no package there; the kernel csr trains, and METIS comes from pymetis",
    ),
    Pair(
        _no_pymetis,
        "note",
        "pymetis with Linux on ARM: it has no package there; partition elsewhere, or with --method random",
    ),
)


def known() -> Iterator[Finding]:
    """Yield the pairs that are here, or that there are none."""
    here = [Finding("pair", pair.mark, pair.text) for pair in PAIRS if pair.met()]
    yield from here or [Finding("pair", "ok", "nothing is here that is known not to go together")]
