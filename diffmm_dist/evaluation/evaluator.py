"""Ranking all items for users, in blocks, and evaluating the lists.

Shape suffixes: B users of a block, U users, I items, D embedding, K list length.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffmm_dist.evaluation.metrics import MetricSums
from diffmm_dist.evaluation.topk import merge_topk
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

_ITEMS_PER_BLOCK = 65_536


def rank_items(
    user_UD: Tensor, item_ID: Tensor, users: Tensor, *, masked: Sequence[CSR], k: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rank all items for some users by the inner product of embeddings, ties by the lower item id.

    Args:
        user_UD: user embeddings.
        item_ID: item embeddings.
        users: int64, rows of ``user_UD``.
        masked: rows of all users; what they hold is never ranked.
        k: list length.
        batch_size: users per block.

    Yields:
        For each block its users (B,), the scores and the items, both (B, min(k, I)); where a user has fewer than k
        items left, the item is -1 and the score minus infinity.
    """
    for block in users.split(batch_size):
        rows_BD = user_UD[block]
        hidden = [mask.select(block) for mask in masked]
        scores, items = merge_topk(_score_blocks(rows_BD, item_ID, hidden), k)
        yield block, scores, torch.where(scores == -torch.inf, -1, items)


def _score_blocks(rows_BD: Tensor, item_ID: Tensor, hidden: Sequence[CSR]) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, item_ID.shape[0], _ITEMS_PER_BLOCK):
        stop = min(start + _ITEMS_PER_BLOCK, item_ID.shape[0])
        scores = rows_BD @ item_ID[start:stop].T
        for mask in hidden:
            inside = (mask.indices >= start) & (mask.indices < stop)
            scores[mask.row_ids[inside], mask.indices[inside] - start] = -torch.inf
        yield start, scores


def evaluate(
    user_UD: Tensor,
    item_ID: Tensor,
    *,
    truth: CSR,
    masked: Sequence[CSR],
    ks: Sequence[int],
    batch_size: int,
    world: World,
) -> dict[str, float]:
    """Return the all-ranking metrics of every user who has at least one true item.

    Args:
        user_UD: embeddings of the users whose rows ``truth`` and ``masked`` hold.
        item_ID: embeddings of all items.
        truth: true items.
        masked: items that are not candidates, such as those of training.
        ks: cut-offs.
        batch_size: users per block.
        world: adds up the workers' users.
    """
    sums = MetricSums(ks, num_items=item_ID.shape[0], device=item_ID.device)
    users = torch.nonzero(truth.row_counts).flatten()
    k = min(max(ks), item_ID.shape[0])
    for block, _, lists in rank_items(user_UD, item_ID, users, masked=masked, k=k, batch_size=batch_size):
        sums.add(lists, truth.select(block))
    return sums.result(world)
