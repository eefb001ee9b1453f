"""Ranking all items for users, in blocks, and evaluating the lists.

Shape suffixes: B users of a block, U users, I items, D embedding, K list length.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffmm_dist.evaluation.metrics import MetricSums
from diffmm_dist.evaluation.topk import best_of, merge_topk
from diffmm_dist.parallel.collectives import all_reduce_max, broadcast_rows
from diffmm_dist.parallel.shard import Shard
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

ITEMS_PER_BLOCK = 65_536
SCORES = 1 << 23  # held at a time: 32 MiB, which the passes over them find in a cache


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
        batch_size: users per block at most.

    Yields:
        For each block its users (B,), the scores and the items, both (B, min(k, I)); where a user has fewer than k
        items left, the item is -1 and the score minus infinity.
    """
    for block in users.split(_users_per_block(item_ID.shape[0], batch_size)):
        rows_BD = user_UD[block]
        hidden = [mask.select(block) for mask in masked]
        scores, items = merge_topk(_score_blocks(rows_BD, item_ID, hidden), k)
        yield block, scores, torch.where(scores == -torch.inf, -1, items)


def _users_per_block(num_items: int, batch_size: int) -> int:
    return min(batch_size, max(1, SCORES // max(1, min(num_items, ITEMS_PER_BLOCK))))


def _score_blocks(rows_BD: Tensor, item_ID: Tensor, hidden: Sequence[CSR]) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, item_ID.shape[0], ITEMS_PER_BLOCK):
        stop = min(start + ITEMS_PER_BLOCK, item_ID.shape[0])
        scores = rows_BD @ item_ID[start:stop].T
        for mask in hidden:
            inside = (mask.indices >= start) & (mask.indices < stop)
            scores[mask.row_ids[inside], mask.indices[inside] - start] = -torch.inf
        yield start, scores


def blocks_of_items(own_ID: Tensor, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the ids, ascending, and the embeddings of each worker's items, one worker's after the other's.

    Every worker goes through it at the same time.

    Args:
        own_ID: of own items.
        shard: what this worker owns.
    """
    items, world = shard.items, shard.world
    sorted_ID = own_ID[torch.argsort(shard.own_item_ids)]
    for owner, (start, stop) in enumerate(pairwise(items.bounds)):
        rows = broadcast_rows(sorted_ID, owner, stop - start, world, purpose="evaluation")
        yield shard.item_ids[start:stop].sort().values, rows


def evaluate(
    user_UD: Tensor,
    item_blocks: Iterable[tuple[Tensor, Tensor]],
    *,
    truth: CSR,
    masked: Sequence[CSR],
    ks: Sequence[int],
    batch_size: int,
    world: World,
    retrieved_ndcg: bool = False,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return the all-ranking metrics of every user who has at least one true item.

    Args:
        user_UD: embeddings of the users whose rows ``truth`` and ``masked`` hold.
        item_blocks: all items in blocks, each its item ids, ascending, and their embeddings.
        truth: true items (users x item ids).
        masked: items that are not candidates, such as those of training.
        ks: cut-offs.
        batch_size: users per block.
        world: adds up the workers' users.
        retrieved_ndcg: measure the NDCG of PromptMM's release too.
        poll: called by all workers together before each block of users; what it raises ends the evaluation.
    """
    num_items = truth.num_columns
    users = torch.nonzero(truth.row_counts).flatten()
    most_users = int(all_reduce_max(float(users.numel()), world))
    lists = best_of_blocks(
        user_UD,
        item_blocks,
        users,
        masked=masked,
        k=min(max(ks), num_items),
        batch_size=batch_size,
        most_users=most_users,
        poll=poll,
    )
    sums = MetricSums(ks, num_items=num_items, device=user_UD.device, retrieved_ndcg=retrieved_ndcg)
    for block, items in zip(users.split(batch_size), lists.split(batch_size), strict=True):
        sums.add(items, truth.select(block))
    return sums.result(world)


def best_of_blocks(
    user_UD: Tensor,
    item_blocks: Iterable[tuple[Tensor, Tensor]],
    users: Tensor,
    *,
    masked: Sequence[CSR],
    k: int,
    batch_size: int,
    most_users: int,
    poll: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the ids of the k best items of each user, -1 where there are fewer: int64 (users, k).

    One block of items is held at a time, and the best so far of every user.

    Args:
        user_UD: embeddings of own users.
        item_blocks: all items in blocks, as of ``evaluate``.
        users: which of the own users, int64.
        masked: what is no candidate, rows of all own users.
        k: length of the lists.
        batch_size: users per block.
        most_users: the most users that any worker has; all poll as often as that one has blocks of them.
        poll: called by all workers together before each block of users.
    """
    best_scores = user_UD.new_full((users.numel(), k), -torch.inf)
    best_ids = torch.full_like(best_scores, -1, dtype=torch.int64)
    for ids, item_ID in item_blocks:
        if not ids.numel():
            continue
        hidden = [mask.restrict(ids) for mask in masked]
        start = 0
        blocks = rank_items(user_UD, item_ID, users, masked=hidden, k=k, batch_size=batch_size)
        for _ in range(0, most_users, _users_per_block(item_ID.shape[0], batch_size)):
            poll()
            if start == users.numel():
                continue
            block, scores, items = next(blocks)
            rows = slice(start, start + block.numel())
            candidates = best_scores[rows], scores
            found = best_ids[rows], torch.where(items >= 0, ids[items], -1)
            best_scores[rows], best_ids[rows] = best_of(torch.cat(candidates, dim=1), torch.cat(found, dim=1), k)
            start = rows.stop
    return best_ids
