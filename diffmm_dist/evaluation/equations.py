"""The metrics as docs/evaluation.md defines them, of one user; metrics.py and topk.py are the fast forms.

``ranks`` are those of the hits in the first K places of the user's list, from 1, ascending.
"""

import math
from collections.abc import Sequence


def ranked(scores: Sequence[float], k: int) -> list[int]:
    """Return the columns of the K largest scores, the largest first, of equal ones the lower column first."""
    return sorted(range(len(scores)), key=lambda column: (-scores[column], column))[:k]


def recall(ranks: Sequence[int], *, num_true: int) -> float:
    """Return hits / |T|."""
    return len(ranks) / num_true


def precision(ranks: Sequence[int], *, k: int) -> float:
    """Return hits / K."""
    return len(ranks) / k


def mrr(ranks: Sequence[int]) -> float:
    """Return 1 / rank of the first hit, 0 without one."""
    return 1 / ranks[0] if ranks else 0.0


def dcg(ranks: Sequence[int]) -> float:
    """Return sum over hits of 1 / log2(rank + 1) (Jarvelin and Kekalainen, 2002)."""
    return sum(1 / math.log2(rank + 1) for rank in ranks)


def ndcg(ranks: Sequence[int], *, num_true: int, k: int) -> float:
    """Return DCG over that of min(|T|, K) hits in the first places."""
    return dcg(ranks) / dcg(range(1, min(num_true, k) + 1))


def retrieved_ndcg(ranks: Sequence[int], *, num_retrieved: int, k: int) -> float:
    """Return DCG over that of min(R, K) hits in the first places, 0 without one: the NDCG of PromptMM's release.

    R (``num_retrieved``) counts the hits in the first places up to the largest cut-off, so what the list misses costs
    nothing.
    """
    return dcg(ranks) / dcg(range(1, min(num_retrieved, k) + 1)) if ranks else 0.0
