"""Parts of a graph made even: of every kind of nodes, and of light and heavy ones alike, each part gets its share.

METIS as pymetis has it spreads one weight evenly; with several, such as users, items and their edges, its parts differ
widely where few nodes have many edges. So it spreads the edges alone, and this moves nodes until all else is even.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

Ints = npt.NDArray[np.int64]

_SLACK = 0.03  # of a part's share, as METIS allows
_ROUNDS = 4  # the cut shrinks little after that


def even_parts(matrix: csr_array, kinds: Ints, parts: Ints, num_parts: int) -> Ints:
    """Move nodes to the parts of their neighbours as far as all parts stay even; return the parts with the least cut.

    Nodes of a kind and of about one weight are dealt out at once, the heaviest first, while all others stay: each wants
    the part with most of its edges, and where more want a part than it has room for, those that lose most elsewhere get
    it. A part has room for its share of a kind's nodes, rounded up, or 1.03 times that, and likewise of their weight;
    where that leaves no room for some, since a few nodes have most of the weight, the lightest parts take them.

    Args:
        matrix: (N, N), symmetric, the edges' weights.
        kinds: (N,), the kind of each node.
        parts: (N,), to begin with, of any sizes.
        num_parts: P.

    Returns:
        The part of each node (N,).
    """
    weights = np.asarray(matrix.sum(axis=1)).ravel()
    found: Ints = parts.copy()
    least = np.inf
    current = parts.copy()
    for _ in range(_ROUNDS):
        for kind in np.unique(kinds):
            _deal(matrix, np.flatnonzero(kinds == kind), weights, current, num_parts)
        cut = _cut(matrix, current)
        if cut < least:
            found, least = current.copy(), cut
    return found


def _deal(matrix: csr_array, nodes: Ints, weights: Ints, parts: Ints, num_parts: int) -> None:
    """Change the parts of the nodes of a kind, the heaviest first."""
    num_nodes = len(parts)
    before = csr_array((np.ones(num_nodes, np.float32), parts.copy(), np.arange(num_nodes + 1)), (num_nodes, num_parts))
    counts, loads = np.zeros(num_parts, np.int64), np.zeros(num_parts, np.int64)
    levels = np.floor(2 * np.log2(np.maximum(weights[nodes], 1)))  # half octaves
    for level in np.unique(levels)[::-1]:
        chosen = nodes[levels == level]
        room = _room(len(chosen), int(weights[chosen].sum()), counts, loads)
        parts[chosen] = _fill((matrix[chosen] @ before).toarray(), room)
        counts += np.bincount(parts[chosen], minlength=num_parts)
        loads += np.bincount(parts[chosen], weights[chosen], minlength=num_parts).astype(np.int64)


def _room(count: int, load: int, counts: Ints, loads: Ints) -> Ints:
    """Return how many of ``count`` nodes of together ``load`` each part may get beside what it has."""
    num_parts = len(counts)
    share = (counts.sum() + count) / num_parts
    room: Ints = max(math.ceil(share), math.floor((1 + _SLACK) * share)) - counts
    by_load = np.ceil(((1 + _SLACK) * (loads.sum() + load) / num_parts - loads) * count / max(load, 1)).astype(np.int64)
    both: Ints = np.clip(np.minimum(room, by_load), 0, None)
    lightest = np.argsort(loads, kind="stable")
    while both.sum() < count:  # by their number there is room for all
        short = count - both.sum()
        open_parts = lightest[room[lightest] > both[lightest]][:short]
        both[open_parts] += np.minimum(room - both, short // len(open_parts))[open_parts]
    return both


def _fill(affinity: npt.NDArray[np.float32], room: Ints) -> Ints:
    """Give each row its best part that has room; where too many want one, those that lose most elsewhere come first.

    Args:
        affinity: (n, P).
        room: (P,), rows that a part may get, together at least n.
    """
    num_parts = len(room)
    parts = np.empty(len(affinity), np.int64)
    left, room = np.arange(len(affinity)), room.copy()
    while len(left):
        wanted = np.where(room > 0, affinity[left], -np.inf)
        best = wanted.argmax(axis=1)
        second, first = np.partition(wanted, num_parts - 2, axis=1)[:, -2:].T
        loss = np.where(np.isinf(second), 0.0, first - second)  # with one part left there is no choice
        order = np.lexsort((-loss, best))
        best = best[order]
        rank = np.arange(len(best)) - np.searchsorted(best, np.arange(num_parts))[best]
        accepted = rank < room[best]
        parts[left[order[accepted]]] = best[accepted]
        room -= np.bincount(best[accepted], minlength=num_parts)
        left = np.sort(left[order[~accepted]])
    return parts


def _cut(matrix: csr_array, parts: Ints) -> float:
    """Return the weight of all edges between parts, each counted from both ends."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return float(matrix.data[parts[rows] != parts[matrix.indices]].sum())
