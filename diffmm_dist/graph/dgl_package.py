"""The one place that imports DGL."""

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from diffmm_dist.errors import UserError, one_line
from diffmm_dist.graph.quiet import quietly

_GRAPHBOLT = "dgl.graphbolt"


def import_dgl(*, otherwise: str = "set graph.kernel=csr") -> Any:
    """Import DGL.

    Args:
        otherwise: what can be done without it.

    Raises:
        UserError: naming the versions that work.
    """
    os.environ["DGLBACKEND"] = "pytorch"  # or DGL writes a configuration file into the home directory, and says so
    try:
        with quietly():
            return _import_without_graphbolt()
    except Exception as error:  # a mismatched build fails with anything from ImportError to OSError
        raise UserError(
            f"DGL cannot be imported ({one_line(error)}); install dgl==2.1.0 on Python 3.10 to 3.12, or {otherwise}"
        ) from error


def _import_without_graphbolt() -> Any:
    """Import DGL with a stand-in for its package ``dgl.graphbolt``, which nothing here uses.

    That package loads a C++ library built for one release of torch (at most 2.2 in dgl 2.1.0) and fails beside any
    other, and with it the whole of DGL, which mentions it in its distributed part.
    """
    ours = "dgl" not in sys.modules
    if ours:
        sys.modules[_GRAPHBOLT] = _StandIn(_GRAPHBOLT)
    try:
        import dgl
    except BaseException:
        if ours:
            del sys.modules[_GRAPHBOLT]
        raise
    return dgl


class _StandIn(ModuleType):
    """A module that has every public name, each an empty class, and whose use beyond that fails."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "Stands for DGL's package of this name, which is not loaded.")
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, loader=None, is_package=True)

    def __getattr__(self, name: str) -> type:
        if name.startswith("_"):  # what torch and inspect ask every module for
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return type(name, (), {"__module__": self.__name__})
