"""Ranking all items for all users, and evaluating the lists.

Symbols: U users, I items, d embedding, n batches of users. FLOP: the scores, 2 U I d. Bytes of ours: the items once for
every batch of users, and every score written and read by the top-k; of faiss, which keeps its blocks of scores in the
cache, the items once for every batch. The plain twin writes the scores, reads them, and has a batch of its own, 256.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from diffmm_dist.bench import plain
from diffmm_dist.bench.operations import FLOAT, Case, Operation, Variant
from diffmm_dist.bench.problems import normal_rows, random_rows
from diffmm_dist.evaluation.evaluator import evaluate, rank_items
from diffmm_dist.models.common.work import product_flop
from diffmm_dist.parallel.world import World

_TIE = 1e-5  # scores that differ by less than this share of the largest are one score, rounded in two ways


@dataclass(frozen=True)
class EvaluateSize:
    """U, I, d, the length of the lists, users of a batch, and the masked items of each user."""

    users: int
    items: int
    dim: int = 64
    topk: int = 100
    batch: int = 1024
    per_user: int = 20


PRESETS = {
    "tiktok": EvaluateSize(users=9308, items=6710, topk=50, per_user=6),
    "medium": EvaluateSize(users=10_000, items=100_000),
    "large": EvaluateSize(users=100_000, items=100_000),
}


class Problem:
    """Random embeddings and masks; every variant leaves its lists, scores (U, k) and items (U, k), in ``lists``."""

    def __init__(self, size: EvaluateSize, device: torch.device) -> None:
        self._user_UD = normal_rows("users", size.users, size.dim, device)
        self._item_ID = normal_rows("items", size.items, size.dim, device)
        self._masked = random_rows(size.users, size.items, size.per_user, device)
        self._truth = random_rows(size.users, size.items, 1, device)
        self._users = torch.arange(size.users, device=device)
        self._size = size
        self.lists: dict[str, tuple[Tensor, Tensor]] = {}

    def ours(self) -> None:
        """Rank as evaluation and export do."""
        size = self._size
        ranked = rank_items(
            self._user_UD, self._item_ID, self._users, masked=[self._masked], k=size.topk, batch_size=size.batch
        )
        self.lists["ours"] = _joined([(scores, items) for _, scores, items in ranked])

    def new_index(self, faiss: Any) -> Any:
        """Return faiss's exact index of the items, with as many threads as torch has."""
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(self._size.dim)
        index.add(self._item_ID.numpy())
        return index

    def by_faiss(self, index: Any) -> None:
        """Ask for as many more items as any user's mask has, then leave out each user's masked ones."""
        size = self._size
        k = min(size.topk, size.items)
        wanted = min(k + int(self._masked.row_counts.max()), size.items)
        blocks = []
        for users in self._users.split(size.batch):
            found = index.search(self._user_UD[users].numpy(), wanted)
            scores, items = (torch.from_numpy(values) for values in found)
            hidden = self._masked.contains(users[:, None].expand_as(items), items)
            order = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
            left_out = hidden.gather(1, order)
            scores, items = scores.gather(1, order), items.gather(1, order)
            blocks.append((scores.masked_fill_(left_out, -torch.inf), items.masked_fill_(left_out, -1)))
        self.lists["faiss"] = _joined(blocks)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of lists with one true item per user."""
        return evaluate(
            self._user_UD,
            [(torch.arange(self._size.items, device=self._users.device), self._item_ID)],
            truth=self._truth,
            masked=[self._masked],
            ks=[self._size.topk],
            batch_size=self._size.batch,
            world=World.single(self._users.device),
        )

    def plain_metrics(self) -> dict[str, float]:
        """Return some of them from the plain twin."""
        lists = [rows.indices.split(rows.row_counts.tolist()) for rows in (self._masked, self._truth)]
        masked, truth = ([items.tolist() for items in of_users] for of_users in lists)
        return plain.evaluate(self._user_UD, self._item_ID, masked, truth, self._size.topk)

    def differences(self) -> dict[str, float]:
        """Return by how much the two differ in each metric that both have."""
        ours = self.metrics()
        return {f"difference_{name}": abs(ours[name] - value) for name, value in self.plain_metrics().items()}

    def agreement(self) -> dict[str, Any]:
        """Return whether the lists are the same up to ties, and the share of places with the same item."""
        if len(self.lists) < 2:
            return {}
        (scores, items), (other_scores, other_items) = self.lists.values()
        same = items == other_items
        tied = (scores - other_scores).abs() <= _TIE * scores[scores.isfinite()].abs().max()
        return {"same_lists": bool((same | tied).all()), "same_items": float(same.to(torch.float64).mean())}


def _joined(blocks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    scores, items = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return scores, items


def operations(size: EvaluateSize, device: torch.device) -> Iterator[Operation]:
    """Yield the ranking and, beside the plain twin's, the evaluation."""
    problem = Problem(size, device)
    flop = product_flop(size.users, size.items, size.dim)
    swept = -(-size.users // size.batch) * size.items * size.dim
    variants = {"ours": Variant(problem.ours, flop, FLOAT * (swept + 2 * size.users * size.items))}
    faiss = _faiss()
    if faiss is not None and device.type == "cpu":
        index = problem.new_index(faiss)
        variants["faiss"] = Variant(lambda: problem.by_faiss(index), flop, FLOAT * swept)
    yield Operation("ranking", variants, problem.agreement)
    if plain.is_affordable(device, num_values=size.users * size.items):
        by_plain = Variant(problem.plain_metrics, flop, FLOAT * 2 * size.users * size.items)
        yield Operation(
            "evaluation",
            {"ours": Variant(problem.metrics, flop, variants["ours"].bytes), "plain": by_plain},
            problem.differences,
        )


def _faiss() -> Any:
    """Return the library to compare with, or None where it is not installed."""
    try:
        return import_module("faiss")
    except ImportError:
        return None


CASE = Case("evaluate", PRESETS, operations)
