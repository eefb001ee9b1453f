"""The best items, or users, by inner product: exact, in blocks, ties by the lower row.

Shape suffixes: B rows that ask, C candidates, D embedding, K list length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffmm_dist.bundles.files import Floats, Ints
from diffmm_dist.bundles.pairs import Pairs
from diffmm_dist.bundles.rows import Rows

ASKED_PER_BLOCK = 1024
_SCORES = 1 << 23  # held at a time: 32 MiB
_CANDIDATES_PER_BLOCK = 65_536
_GROUP = 16  # columns of which only the largest score takes part in the first choice
Flags = npt.NDArray[np.bool_]


class Lists(NamedTuple):
    """Best candidates, the first the best.

    Attributes:
        scores: float32 (B, K), minus infinity where there is no further candidate.
        rows: int64 (B, K), minus one there.
    """

    scores: Floats
    rows: Ints


@dataclass(frozen=True, eq=False)
class Rule:
    """What may be in a list.

    Attributes:
        allowed: which candidates may be ranked, (C,), or None for all.
        categories: the category of each candidate, int64 (C,), minus one for none; or None.
        at_most: how many of one category a list may hold; of none, any number.
    """

    allowed: Flags | None = None
    categories: Ints | None = None
    at_most: int = 1


def blocks_of(count: int, num_candidates: int, most: int = ASKED_PER_BLOCK) -> Iterator[slice]:
    """Yield slices of so many rows that their scores take no more memory than meant."""
    size = min(most, max(1, _SCORES // max(1, min(num_candidates, _CANDIDATES_PER_BLOCK))))
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))


def best(
    asked_BD: Floats,
    candidates: Rows,
    k: int,
    *,
    hidden: Pairs | None = None,
    rule: Rule | None = None,
    lengths: Floats | None = None,
) -> Lists:
    """Return the k candidates with the highest scores, inner products, or fewer where there are no more.

    Args:
        asked_BD: who asks.
        candidates: embeddings (C, D).
        k: list length.
        hidden: what is never listed, a row for each who asks.
        rule: what may be listed.
        lengths: what the scores of each candidate are divided by (C,).
    """
    rule = rule or Rule()
    k = min(k, len(candidates))
    if rule.categories is None:
        return _best(asked_BD, _Candidates(candidates, rule.allowed, lengths), k, hidden)
    lists = Lists(np.full((len(asked_BD), k), -np.inf, np.float32), np.full((len(asked_BD), k), -1))
    open_rows, length = np.arange(len(asked_BD)), k
    while len(open_rows):
        length = min(4 * length, len(candidates))
        rest = None if hidden is None else hidden.take(open_rows)
        found = _best(asked_BD[open_rows], _Candidates(candidates, rule.allowed, lengths), length, rest)
        kept = _within_categories(found, rule.categories, rule.at_most, k)
        lists.scores[open_rows], lists.rows[open_rows] = kept
        short = kept.rows[:, -1] < 0
        ended = (found.rows[:, -1] < 0) | (length == len(candidates))
        open_rows = open_rows[short & ~ended]
    return lists


class _Candidates(NamedTuple):
    rows: Rows
    allowed: Flags | None
    lengths: Floats | None

    def scores(self, asked_BD: Floats) -> Iterator[tuple[int, Floats]]:
        """Yield the scores of blocks of candidates, each with its first one; minus infinity for what is not allowed."""
        for first_of_piece, piece in self.rows.blocks():
            for start in range(0, len(piece), _CANDIDATES_PER_BLOCK):
                block, first = piece[start : start + _CANDIDATES_PER_BLOCK], first_of_piece + start
                these = slice(first, first + len(block))
                scores = asked_BD @ block.T
                if self.lengths is not None:
                    scores /= self.lengths[these]
                if self.allowed is not None:
                    scores[:, ~self.allowed[these]] = -np.inf
                yield first, scores


def _best(asked_BD: Floats, candidates: _Candidates, k: int, hidden: Pairs | None) -> Lists:
    lists = Lists(np.full((len(asked_BD), k), -np.inf, np.float32), np.full((len(asked_BD), k), -1))
    for first, scores in candidates.scores(asked_BD):
        if hidden is not None:
            inside = (hidden.items >= first) & (hidden.items < first + scores.shape[1])
            scores[hidden.rows()[inside], hidden.items[inside] - first] = -np.inf
        found = topk(scores, k)
        # Earlier blocks have the lower rows and stand first, so a stable sort keeps the order of ties.
        both = np.concatenate([lists.scores, found.scores], axis=1)
        rows = np.concatenate([lists.rows, np.where(found.scores > -np.inf, found.rows + first, -1)], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        lists = Lists(np.take_along_axis(both, order, axis=1), np.take_along_axis(rows, order, axis=1))
    return lists


def topk(scores_BC: Floats, k: int) -> Lists:
    """Return the k largest scores of each row, falling, and their columns; ties by the lower column."""
    k = min(k, scores_BC.shape[1])
    found = _few_that_hold(scores_BC, k)
    if found is None:
        return _topk(scores_BC, k)
    scores, columns = found
    lists = _topk(scores, k)
    return Lists(lists.scores, np.take_along_axis(columns, lists.rows, axis=1))


def _topk(scores_BC: Floats, k: int) -> Lists:
    num_columns = scores_BC.shape[1]
    columns = np.broadcast_to(np.arange(num_columns), scores_BC.shape)
    if k < num_columns:
        last = np.partition(scores_BC, num_columns - k, axis=1)[:, num_columns - k, None]
        chosen = scores_BC >= last
        tied = np.flatnonzero(chosen.sum(axis=1) > k)  # more than k share the places: the first of them have these
        if len(tied):
            above, equal = scores_BC[tied] > last[tied], scores_BC[tied] == last[tied]
            room = k - above.sum(axis=1, keepdims=True)
            chosen[tied] = above | (equal & (np.cumsum(equal, axis=1) <= room))
        columns = np.nonzero(chosen)[1].reshape(-1, k)
        scores_BC = np.take_along_axis(scores_BC, columns, axis=1)
    order = np.argsort(-scores_BC, axis=1, kind="stable")
    return Lists(np.take_along_axis(scores_BC, order, axis=1), np.take_along_axis(columns, order, axis=1))


def _few_that_hold(scores_BC: Floats, k: int) -> tuple[Floats, Ints] | None:
    """Return scores and columns, ascending, among which the k largest of each row are; None if they are not few.

    Columns are in groups, and no score below the k-th largest of the groups' maxima is among the k largest of all: a
    pass for the maxima takes far less time than a selection among all columns.
    """
    num_rows, num_columns = scores_BC.shape
    length = num_columns // _GROUP
    if k > length // 2 or not num_rows:
        return None
    maxima = scores_BC[:, : _GROUP * length].reshape(num_rows, _GROUP, length).max(axis=1)
    least = np.partition(maxima, length - k, axis=1)[:, length - k, None]
    rows, columns = np.nonzero(scores_BC >= least)
    counts = np.bincount(rows, minlength=num_rows)
    most = int(counts.max())
    if most > num_columns // 4:
        return None
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    few, of_few = np.full((num_rows, most), -np.inf, np.float32), np.zeros((num_rows, most), np.int64)
    few[rows, places], of_few[rows, places] = scores_BC[rows, columns], columns
    return few, of_few


def _within_categories(found: Lists, categories: Ints, at_most: int, k: int) -> Lists:
    """Return the first k entries of each list that have fewer than so many of their category before them."""
    of_entry = np.where(found.rows >= 0, categories[found.rows], -1)
    order = np.argsort(of_entry, axis=1, kind="stable")
    grouped = np.take_along_axis(of_entry, order, axis=1)
    places = np.arange(grouped.shape[1])
    is_first = np.concatenate([np.ones((len(grouped), 1), bool), grouped[:, 1:] != grouped[:, :-1]], axis=1)
    before = places - np.maximum.accumulate(np.where(is_first, places, 0), axis=1)
    num_before = np.empty_like(before)
    np.put_along_axis(num_before, order, before, axis=1)
    kept = (found.rows >= 0) & ((of_entry < 0) | (num_before < at_most))
    first = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    is_kept = np.take_along_axis(kept, first, axis=1)
    scores = np.where(is_kept, np.take_along_axis(found.scores, first, axis=1), -np.inf)
    return Lists(scores.astype(np.float32), np.where(is_kept, np.take_along_axis(found.rows, first, axis=1), -1))
