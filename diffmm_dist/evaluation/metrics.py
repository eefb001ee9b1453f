"""Ranking metrics as sums over users, so that workers can add theirs up.

Shape suffixes: B users, K list length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffmm_dist.parallel.collectives import all_reduce_sum
from diffmm_dist.parallel.world import World
from diffmm_dist.sparse import CSR

_DIGITS = 12
NAMES = ("recall", "ndcg", "precision", "hit_rate", "mrr")
RETRIEVED_NDCG = "ndcg_retrieved"


class MetricSums:
    """Collects metrics of ranked lists.

    For a user with true items T and the first K items of a list (docs/evaluation.md):
    recall = hits / |T|; precision = hits / K; hit rate = [hits > 0]; mrr = 1 / rank of the first hit (0 without one);
    ndcg = sum over hits of 1 / log2(rank + 1), divided by the same for min(|T|, K) hits in the first places; ranks
    start from 1. Coverage is the share of the catalogue that stands in at least one list.

    ndcg_retrieved is that of PromptMM's release, for comparison with it alone: it divides by the value for min(R, K)
    hits in the first places, where R counts the hits of the longest list, and is 0 without one.

    Args:
        ks: cut-offs.
        num_items: I.
        device: where the lists are.
        retrieved_ndcg: adds ndcg_retrieved.

    Attributes:
        names: of the metrics of each user, in their order.
    """

    def __init__(
        self, ks: Sequence[int], *, num_items: int, device: torch.device, retrieved_ndcg: bool = False
    ) -> None:
        self.names = (*NAMES, RETRIEVED_NDCG) if retrieved_ndcg else NAMES
        self._ks = tuple(sorted(set(ks)))
        self._num_items = num_items
        self._sums = torch.zeros(len(self._ks), len(self.names), dtype=torch.float64, device=device)
        # Summed on the CPU: a GPU has no repeatable running sum.
        ranks = torch.arange(1, min(self._ks[-1], num_items) + 1, dtype=torch.float64)
        gains = 1 / torch.log2(ranks + 1)
        self._ranks, self._gains, self._ideals = (table.to(device) for table in (ranks, gains, gains.cumsum(0)))
        self._users = torch.zeros((), dtype=torch.float64, device=device)
        self._seen = torch.zeros(len(self._ks), num_items, dtype=torch.int32, device=device)

    def add(self, lists_BK: Tensor, truth: CSR) -> None:
        """Add users.

        Args:
            lists_BK: ranked item ids, best first; -1 where a list has ended.
            truth: the true items of the same users, at least one each.
        """
        for index, (k, per_user) in enumerate(zip(self._ks, self.per_user(lists_BK, truth), strict=True)):
            self._sums[index] += per_user.sum(dim=0)
            shown = lists_BK[:, :k]
            self._seen[index, shown[shown >= 0]] = 1
        self._users += lists_BK.shape[0]

    def per_user(self, lists_BK: Tensor, truth: CSR) -> list[Tensor]:
        """Return the metrics of each user, in the order of ``names``, float64 (B, metrics) for each cut-off, ascending.

        The arguments are those of ``add``.
        """
        num_rows, width = lists_BK.shape
        rows = torch.arange(num_rows, device=lists_BK.device)[:, None].expand(-1, width)
        hits = truth.contains(rows, lists_BK) & (lists_BK >= 0)
        sizes = truth.row_counts
        retrieved = hits[:, : self._ks[-1]].sum(dim=1)
        found = []
        for k in self._ks:
            top = hits[:, :k]
            depth = top.shape[1]
            count = top.sum(dim=1).to(torch.float64)
            first = (top / self._ranks[:depth]).amax(dim=1)
            dcg = (top * self._gains[:depth]).sum(dim=1)
            per_user = [
                count / sizes,
                dcg / self._ideals[sizes.clamp(max=k) - 1],
                count / k,
                (count > 0).to(torch.float64),
                first,
            ]
            if RETRIEVED_NDCG in self.names:
                per_user.append(dcg / self._ideals[retrieved.clamp(min=1, max=k) - 1])
            found.append(torch.stack(per_user, dim=1))
        return found

    def result(self, world: World) -> dict[str, float]:
        """Return every metric over the users of all workers, such as ``{"recall@20": 0.1}``."""
        sums = all_reduce_sum(self._sums, world)
        users = all_reduce_sum(self._users, world).clamp(min=1)
        seen = all_reduce_sum(self._seen, world) > 0
        means = (sums / users).tolist()
        # Rounded, so that epochs that tie do so whatever the order in which workers add up their users.
        values = {
            f"{name}@{k}": round(means[i][j], _DIGITS)
            for i, k in enumerate(self._ks)
            for j, name in enumerate(self.names)
        }
        coverage = {f"coverage@{k}": float(seen[i].sum()) / self._num_items for i, k in enumerate(self._ks)}
        return values | coverage
