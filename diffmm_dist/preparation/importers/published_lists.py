"""The lists of folders published with PromptMM: JSON objects from each user to the items of its interactions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmm_dist import storage
from diffmm_dist.data.schema import Split
from diffmm_dist.errors import UserError
from diffmm_dist.preparation.importers.report import Mistakes
from diffmm_dist.preparation.importers.sparse_pickle import Pattern
from diffmm_dist.words import shown

LISTS: dict[Split, str] = {"train": "train.json", "valid": "val.json", "test": "test.json"}
_MOST_ROWS = 2**31 - 1
_Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def read_lists(paths: Mapping[Split, str], wrong: Mistakes, *, num_items: int) -> dict[Split, Pattern]:
    """Return the interactions of each split; users and items are as many as the highest number in any of them says.

    Args:
        paths: of the splits' files.
        wrong: where mistakes go.
        num_items: items that there are at least.
    """
    pairs: dict[Split, _Pairs] = {}
    for split, uri in paths.items():
        with wrong.collected():
            pairs[split] = _pairs(uri)
    num_users = 1 + max((int(users.max(initial=-1)) for users, _ in pairs.values()), default=-1)
    num_items = max([num_items, *(1 + int(items.max(initial=-1)) for _, items in pairs.values())])
    return {
        split: Pattern(num_users, num_items, 0, np.unique(users * num_items + items))
        for split, (users, items) in pairs.items()
    }


def _pairs(uri: str) -> _Pairs:
    """Return the users and items of a file, int64 (n,) each."""
    lists = storage.read_json(uri)
    if not isinstance(lists, dict) or not all(isinstance(items, list) for items in lists.values()):
        raise UserError(f"{uri} must hold an object with a list of items for each user")
    users = [_number(user, f"{uri}: user") for user in lists]
    items = [_number(item, f"{uri}: item") for values in lists.values() for item in values]
    counts = [len(values) for values in lists.values()]
    return np.repeat(np.array(users, np.int64), counts), np.array(items, np.int64)


def _number(value: Any, what: str) -> int:
    """Return a row number, which of users is written as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_ROWS:
        raise UserError(f"{what} {shown(value)} is no number from 0 to {_MOST_ROWS - 1:,}; mend the file")
    return value
