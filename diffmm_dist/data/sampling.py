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


def sample_negatives(interactions: CSR, rows: Tensor, ids: Tensor, stream: RandomStream) -> Tensor:
    """Draw one item for each of some interactions, uniform over the items that its user has not interacted with.

    A user with n interactions has I - n other items. The r-th of these is found by a binary search: before the
    j-th interacted item a_j lie a_j - j others, so the wanted item is r + #{j : a_j - j <= r}. One vectorised pass,
    however dense a user is.

    Args:
        interactions: training interactions, one row per user; no row is full.
        rows: int64 (n,), the row of each interaction's user.
        ids: int64 (n,), global number of each interaction, which keys its draw.
        stream: the epoch's random stream.

    Returns:
        int64 (n,) items.
    """
    counts = interactions.row_counts
    num_items = interactions.num_columns
    drawn = stream.integers(ids, num_items - counts[rows])
    places_in_row = torch.arange(interactions.num_entries, device=rows.device) - torch.repeat_interleave(
        interactions.indptr[:-1], counts
    )
    others_before = interactions.keys - places_in_row  # row * I + (a_j - j): ascending, since a_j - j < I
    below = torch.searchsorted(others_before, rows * num_items + drawn, right=True) - interactions.indptr[rows]
    return drawn + below
