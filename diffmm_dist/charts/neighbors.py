"""A node and its neighbours in a graph: those that stay, those that are new, and those that are gone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffmm_dist.charts.axes import number
from diffmm_dist.charts.shapes import Box, Dot, Line, Picture, Shape, Text, fitted, text_width

Kind = Literal["kept", "new", "gone"]
INKS: dict[Kind, str] = {"kept": "c0", "new": "c1", "gone": "muted"}
DASHES: dict[Kind, str] = {"kept": "", "new": "6 3", "gone": "2 4"}
MOST = 12
_WIDTH, _ROW, _TOP, _CENTRE, _LIST = 400.0, 25.0, 34.0, 66.0, 168.0
_SMALL = 11.0


@dataclass(frozen=True)
class Neighbor:
    """A neighbour.

    Attributes:
        name: what it is called.
        kind: whether both graphs have it, the new one alone, or the old one alone.
        value: what it was chosen by, if that is known.
        note: what else is to be said of it.
    """

    name: str
    kind: Kind = "kept"
    value: float | None = None
    note: str = ""


def neighbors(title: str, centre: str, around: Sequence[Neighbor], *, words: str) -> Picture:
    """Return a node with lines to its neighbours, the first ``MOST`` of them.

    Args:
        title: above it.
        centre: name of the node.
        around: its neighbours.
        words: what is shown.
    """
    shown = around[:MOST]
    left = len(around) - len(shown)
    rows = max(len(shown) + bool(left), 1)
    middle = _TOP + rows * _ROW / 2
    shapes: list[Shape] = [Text(0, 13, fitted(title, _WIDTH, 13), size=13, bold=True, title=title)]
    behind: list[Shape] = []
    for place, one in enumerate(shown):
        y = _TOP + (place + 0.5) * _ROW
        title_of = ", ".join(filter(None, [one.name, one.kind, _value(one), one.note]))
        width = 1.4 if one.kind == "gone" else 2.2
        shapes.append(Line([(_CENTRE, middle), (_LIST, y)], INKS[one.kind], width, DASHES[one.kind], title_of))
        behind += _listed(one, y, title_of)
    if left:
        behind.append(Text(_LIST + 10, _TOP + (rows - 0.5) * _ROW + 4, f"and {left:,} more", size=_SMALL, ink="muted"))
    if not shown:
        behind.append(Text(_LIST, middle + 4, "none", size=_SMALL, ink="muted"))
    name = fitted(centre, 2 * _CENTRE - 8, _SMALL)
    half = max(26.0, text_width(name, _SMALL) / 2 + 7)
    x = max(_CENTRE - half, 1.0)
    node: list[Shape] = [
        Box(x, middle - 14, 2 * half, 28, "paper", "text", centre, 14),
        Text(x + half, middle + 4, name, "middle", _SMALL, bold=True, title=centre),
    ]
    return Picture(_WIDTH, _TOP + rows * _ROW + 6, [*shapes, *node, *behind], words)


def _listed(one: Neighbor, y: float, title: str) -> list[Shape]:
    ending = " ".join(filter(None, [_value(one), one.note]))
    room = _WIDTH - _LIST - 12 - (text_width(ending, _SMALL) + 10 if ending else 0)
    ink = "muted" if one.kind == "gone" else "text"
    name = fitted(one.name, room, _SMALL)
    behind = max(_LIST + 120, _LIST + 24 + text_width(name, _SMALL))
    shapes: list[Shape] = [
        Dot(_LIST, y, 5, INKS[one.kind], title),
        Text(_LIST + 11, y + 4, name, size=_SMALL, ink=ink, title=title),
    ]
    return [*shapes, Text(behind, y + 4, ending, size=_SMALL, ink="muted")] if ending else shapes


def _value(one: Neighbor) -> str:
    return "" if one.value is None else number(round(one.value, 4))
