"""Reading pickles that may construct nothing but what an allow-list offers."""

import pickle
from collections.abc import Mapping
from typing import IO, Any

from diffmm_dist.errors import UserError, one_line


class _AllowListUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], allowed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise UserError(f"it asks for {module}.{name}, which is not on the list of harmless classes")
        return self._allowed[module, name]


def load_pickle(file: IO[bytes], *, allowed: Mapping[tuple[str, str], Any], source: str) -> Any:
    """Load a pickle without letting it run code.

    Args:
        file: the pickle.
        allowed: what it gets for each (module, name) that it may look up.
        source: how to name the file in an error.

    Raises:
        UserError: the file is no pickle, is truncated, or asks for anything else.
    """
    try:
        return _AllowListUnpickler(file, allowed).load()
    except UserError as error:
        raise UserError(f"refusing the pickle {source}: {error}; convert it on a machine where you trust it") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{source} is not a readable pickle: {one_line(error)}") from error
