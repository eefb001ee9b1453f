"""Metrics of single users, and of single items how often they are found: what means and intervals are made of.

Shape suffixes: U users, I items, D embedding, N users with true items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffmm_dist.evaluation.evaluator import rank_items
from diffmm_dist.evaluation.metrics import MetricSums
from diffmm_dist.sparse import CSR

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UserFigures:
    """How well the lists of each user do.

    Attributes:
        rows: the users with true items, in the order that was asked for, (N,).
        metrics: by name, such as ``recall@20``, the value of each of these users, (N,).
        coverage: by name, such as ``coverage@20``, the share of all items that stand in some list.
        truths: how often each item is a true one, by item id, (I,).
        hits: by cut-off, how often each was in the list where it is a true one, (I,).
    """

    rows: Ints
    metrics: dict[str, Floats]
    coverage: dict[str, float]
    truths: Ints
    hits: dict[int, Ints]


def user_figures(
    user_UD: Tensor,
    item_ID: Tensor,
    rows: Tensor,
    *,
    truth: CSR,
    masked: Sequence[CSR],
    ks: Sequence[int],
    batch_size: int = 1024,
) -> UserFigures:
    """Rank all items for some users, in blocks of them, and measure each list.

    Args:
        user_UD: embeddings.
        item_ID: embeddings, in the order of the items' ids.
        rows: int64 (N,), which users; each has true items.
        truth: true items (users x item ids).
        masked: what is never ranked, likewise.
        ks: cut-offs.
        batch_size: users per block at most.
    """
    ks, num_items = sorted(set(ks)), item_ID.shape[0]
    sums = MetricSums(ks, num_items=num_items, device=user_UD.device)
    found: list[list[Tensor]] = [[] for _ in ks]
    seen = torch.zeros(len(ks), num_items, dtype=torch.bool, device=user_UD.device)
    hits = torch.zeros(len(ks), num_items, dtype=torch.int64, device=user_UD.device)
    for block, _, lists in rank_items(user_UD, item_ID, rows, masked=masked, k=ks[-1], batch_size=batch_size):
        wanted = truth.select(block)
        for values, per_user in zip(found, sums.per_user(lists, wanted), strict=True):
            values.append(per_user)
        places = torch.arange(block.numel(), device=lists.device)[:, None].expand_as(lists)
        found_items = wanted.contains(places, lists) & (lists >= 0)
        for index, k in enumerate(ks):
            first = lists[:, :k]
            seen[index, first[first >= 0]] = True
            hits[index] += torch.bincount(first[found_items[:, :k]], minlength=num_items)
    metrics: dict[str, Floats] = {}
    for k, values in zip(ks, found, strict=True):
        of_users = torch.cat([torch.empty(0, len(sums.names), dtype=torch.float64), *(one.cpu() for one in values)])
        metrics |= {f"{name}@{k}": of_users[:, index].numpy() for index, name in enumerate(sums.names)}
    coverage = {f"coverage@{k}": float(shown.sum()) / num_items for k, shown in zip(ks, seen, strict=True)}
    truths = truth.select(rows).column_counts
    of_items = dict(zip(ks, hits.cpu().numpy(), strict=True))
    return UserFigures(rows.cpu().numpy(), metrics, coverage, truths.cpu().numpy(), of_items)
