"""Negative items: uniform over what a user has not interacted with, without rejection."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffmm_dist.errors import UserError
from diffmm_dist.parallel.random import RandomStream
from diffmm_dist.sparse import CSR


def check_negatives_exist(interactions: CSR, name_of_user: Callable[[int], str] = str) -> None:
    """Raise a ``UserError`` if some user has interacted with every item, so that no negative can be drawn.

    Args:
        interactions: one row per user.
        name_of_user: what a row's user is called in the raw data.
    """
    full = torch.nonzero(interactions.row_counts == interactions.num_columns).flatten()
    if full.numel():
        raise UserError(
            f"user {name_of_user(int(full[0]))} has interacted with all {interactions.num_columns} items in training "
            f"({full.numel()} such users), so no negative item can be drawn; remove them or add items"
        )


class NegativeSampler:
    """Draws items, uniform over those that a user has not interacted with.

    A user with n interactions has I - n other items. The r-th of these is found by a binary search: before the
    j-th interacted item a_j lie a_j - j others, so the wanted item is r + #{j : a_j - j <= r}. One vectorised pass,
    however dense a user is.

    Args:
        interactions: training interactions, one row per user; no row is full. What is searched in is made of them
            here, and takes as much memory as the items of all interactions.
    """

    def __init__(self, interactions: CSR) -> None:
        self._interactions = interactions
        places_in_row = torch.arange(interactions.num_entries, device=interactions.indices.device)
        places_in_row -= torch.repeat_interleave(interactions.indptr[:-1], interactions.row_counts)
        self._others_before = interactions.keys - places_in_row  # row * I + (a_j - j): ascending, since a_j - j < I

    def draw(self, rows: Tensor, ids: Tensor, stream: RandomStream) -> Tensor:
        """Draw an item for each of some rows.

        Args:
            rows: int64 (n,), users, with repeats.
            ids: int64 (n,), what keys each draw, such as the global number of an interaction.
            stream: the random stream of all these draws.

        Returns:
            int64 (n,) items.
        """
        num_items, indptr = self._interactions.num_columns, self._interactions.indptr
        drawn = stream.integers(ids, num_items - self._interactions.row_counts[rows])
        below = torch.searchsorted(self._others_before, rows * num_items + drawn, right=True) - indptr[rows]
        return drawn + below
