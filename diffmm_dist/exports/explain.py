"""Why an item is recommended: the paths of facts from what a user knows to it that have the highest attention.

The recommended item attends to its facts, and so do the items that the user knows. A path of one fact leads from the
recommended item to a known one and counts the attention on it; a path of two facts leads from both to an entity that
they share and counts the product of the attention that each pays to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffmm_dist.bundles.bundle import Bundle
from diffmm_dist.errors import UserError
from diffmm_dist.exports.knowledge import BundledKnowledge
from diffmm_dist.words import shown


@dataclass(frozen=True)
class Step:
    """A fact of a path, as its head attends to it.

    Attributes:
        head: name of the node.
        relation: name of the relation; an inverse one begins with ``~``.
        tail: name of the node.
        attention: share of the head's attention.
    """

    head: str
    relation: str
    tail: str
    attention: float

    def __str__(self) -> str:
        return f"{self.relation} {self.attention:.3f}"


@dataclass(frozen=True)
class Path:
    """A path from an item that the user knows to the recommended one.

    Attributes:
        known: the item that the user knows.
        shared: the entity between them, None where the items are joined by a fact.
        steps: its facts: of the recommended item, then that of the known one if there is an entity between.
    """

    known: str
    shared: str | None
    steps: Sequence[Step]

    @property
    def attention(self) -> float:
        """The product over its facts."""
        return float(np.prod([step.attention for step in self.steps]))


@dataclass(frozen=True)
class Explanation:
    """Why an item is recommended to a user.

    Attributes:
        user: original id.
        item: original id.
        score: of the pair.
        num_known: items that the user knows.
        paths: those with the highest attention, falling.
        num_paths: how many there are.
    """

    user: str
    item: str
    score: float
    num_known: int
    paths: Sequence[Path]
    num_paths: int


def explain(bundle: Bundle, facts: BundledKnowledge, user: str, item: str, *, most: int) -> Explanation:
    """Find the paths that lead to an item.

    Args:
        bundle: the bundle.
        facts: its knowledge graph.
        user: original id, as text.
        item: original id, as text.
        most: how many paths to return.

    Raises:
        UserError: there is no such user or item.
    """
    user_row, item_row = _row(bundle.user_ids, user, "user"), _row(bundle.item_ids, item, "item")
    known = bundle.seen.of_row(user_row)
    known = known[known != item_row]
    names = _Names(bundle.item_ids, facts)
    own = np.flatnonzero(facts.heads == item_row)
    direct = own[np.isin(facts.tails[own], known)]
    found: list[tuple[tuple[int, ...], float]] = [((edge,), float(facts.attention[edge])) for edge in direct.tolist()]
    of_known = np.flatnonzero(np.isin(facts.heads, known) & np.isin(facts.tails, facts.tails[own]))
    for first in own.tolist():
        for second in of_known[facts.tails[of_known] == facts.tails[first]].tolist():
            found.append(((first, second), float(facts.attention[first]) * float(facts.attention[second])))
    found.sort(key=lambda path: (-path[1], path[0]))
    user_row_D, item_row_D = (
        rows.take(np.array([row]))[0] for rows, row in ((bundle.user_rows, user_row), (bundle.item_rows, item_row))
    )
    score = float(user_row_D @ item_row_D)
    paths = [names.path(edges) for edges, _ in found[:most]]
    return Explanation(user, item, score, len(known), paths, len(found))


def _row(ids: pa.ChunkedArray, text: str, kind: str) -> int:
    place = int(pc.index(ids.cast(pa.string()), text).as_py())
    if place < 0:
        raise UserError(f"there is no {kind} {shown(text)} in this bundle; give an id as in the raw data")
    return place


class _Names:
    """Original ids of nodes and relations."""

    def __init__(self, item_ids: pa.ChunkedArray, facts: BundledKnowledge) -> None:
        self._items, self._facts = item_ids, facts

    def node(self, node: int) -> str:
        count = len(self._items)
        return str((self._items[node] if node < count else self._facts.entity_ids[node - count]).as_py())

    def relation(self, relation: int) -> str:
        count = len(self._facts.relation_ids)
        name = str(self._facts.relation_ids[relation % count].as_py())
        return f"~{name}" if relation >= count else name

    def path(self, edges: Sequence[int]) -> Path:
        facts = self._facts
        steps = [
            Step(
                self.node(int(facts.heads[edge])),
                self.relation(int(facts.relations[edge])),
                self.node(int(facts.tails[edge])),
                float(facts.attention[edge]),
            )
            for edge in edges
        ]
        if len(steps) == 1:
            return Path(steps[0].tail, None, steps)
        return Path(steps[1].head, steps[1].tail, steps)


_WIDTH, _ROW, _TOP, _COLUMNS, _HALF = 1180, 46, 84, (110, 590, 1070), 100
_SHORT = 28


def picture(explanation: Explanation) -> str:
    """Return the paths as an SVG: known items, shared entities, the recommended item; lines as wide as attention."""
    shared = list(dict.fromkeys(path.shared for path in explanation.paths if path.shared is not None))
    order = {name: place for place, name in enumerate(shared)}
    beside = sorted(explanation.paths, key=lambda path: order.get(path.shared or "", len(order)))
    known = list(dict.fromkeys(path.known for path in beside))  # those that share an entity stand together
    rows = max(len(known), len(shared), 1)
    height = _TOP + rows * _ROW + 20
    left, centre = _spread(known, rows), _spread(shared, rows)
    middle = _TOP + rows * _ROW / 2
    lines, labels = [], []
    for path in explanation.paths:
        if path.shared is None:
            lines.append(_line(0, left[path.known], 2, middle, path.steps[0]))
            continue
        first, second = path.steps
        lines.append(_line(0, left[path.known], 1, centre[path.shared], second))
        lines.append(_line(1, centre[path.shared], 2, middle, first))
    for x, places in ((_COLUMNS[0], left), (_COLUMNS[1], centre), (_COLUMNS[2], {explanation.item: middle})):
        labels += [_box(x, y, name) for name, y in places.items()]
    heads = [
        f'<text x="{x}" y="58" text-anchor="middle" font-size="13" fill="#555">{text}</text>'
        for x, text in zip(_COLUMNS, ("known to the user", "entity that both have", "recommended"), strict=True)
    ]
    title = f"user {explanation.user}, item {explanation.item}: the {len(explanation.paths)} most attended paths"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
            f'width="{_WIDTH}" height="{height:.0f}" font-family="sans-serif">',
            f'<rect width="{_WIDTH}" height="{height:.0f}" fill="white"/>',
            f'<text x="20" y="30" font-size="17">{escape(title)}</text>',
            *heads,
            *dict.fromkeys(lines),
            *labels,
            "</svg>\n",
        ]
    )


def _spread(names: Sequence[str], rows: int) -> dict[str, float]:
    """Return how far down each name stands in a column of so many rows."""
    return {name: _TOP + (place + 0.5) * rows * _ROW / len(names) for place, name in enumerate(names)}


def _line(start: int, y1: float, stop: int, y2: float, step: Step) -> str:
    """Return a line from the right of one column to the left of another, with what it stands for."""
    width = 1 + 9 * step.attention
    x1, x2 = _COLUMNS[start] + _HALF, _COLUMNS[stop] - _HALF
    x, y = x1 + (x2 - x1) / 2, y1 + (y2 - y1) / 2
    label = escape(f"{_shortened(step.relation)} {step.attention:.2f}")
    return (
        f'<line x1="{x1}" y1="{y1:.1f}" x2="{x2}" y2="{y2:.1f}" stroke="#4878a8" stroke-opacity="0.6" '
        f'stroke-width="{width:.1f}"/><text x="{x}" y="{y - 5:.1f}" text-anchor="middle" font-size="11" '
        f'fill="#333" stroke="white" stroke-width="3" paint-order="stroke">{label}</text>'
    )


def _box(x: float, y: float, name: str) -> str:
    place = f'x="{x - _HALF}" y="{y - 14:.1f}" width="{2 * _HALF}" height="28"'
    return (
        f'<rect {place} rx="6" fill="#eef3f8" stroke="#4878a8"/>'
        f'<text x="{x}" y="{y + 5:.1f}" text-anchor="middle" font-size="13">{escape(_shortened(name))}</text>'
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHORT else f"...{text[3 - _SHORT :]}"
