"""What charts have in common: a title, a legend, and two axes around the place where something is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffmm_dist.charts.axes import Scale, number
from diffmm_dist.charts.shapes import DASHES, Box, Line, Shape, Text, fitted, series_ink, text_width

WIDTH, HEIGHT = 400.0, 236.0
LEFT, RIGHT, BOTTOM = 52.0, 10.0, 38.0
_SMALL = 11.0
_TITLE, _LEGEND_ROW = 18.0, 17.0
_SWATCH = 20.0


@dataclass(frozen=True)
class Frame:
    """A chart without its contents.

    Attributes:
        shapes: title, legend and axes.
        top: where the contents begin.
        bottom: where they end.
    """

    shapes: list[Shape]
    top: float
    bottom: float = HEIGHT - BOTTOM


def begin(title: str, names: Sequence[str], *, lines: bool = False, width: float = WIDTH) -> Frame:
    """Return a title and, of several series or of a named one, a legend.

    Args:
        title: of the chart.
        names: of the series; a single one without a name has no legend.
        lines: their signs are lines, not boxes.
        width: of the sheet.
    """
    shapes: list[Shape] = [Text(0, 13, fitted(title, width, 13), size=13, bold=True, title=title)]
    x, y = 0.0, _TITLE + 12
    shown = [name for name in names if name]
    for index, name in enumerate(shown):
        name = fitted(name, width - _SWATCH - 6, _SMALL)
        wide = _SWATCH + 5 + text_width(name, _SMALL) + 12
        if x and x + wide > width:
            x, y = 0.0, y + _LEGEND_ROW
        shapes += [_sign(x, y, index, lines=lines), Text(x + _SWATCH + 5, y, name, size=_SMALL, ink="muted")]
        x += wide
    return Frame(shapes, (y + 10 if shown else _TITLE + 8) + 4)


def _sign(x: float, y: float, index: int, *, lines: bool) -> Shape:
    ink = series_ink(index)
    if lines:
        return Line([(x, y - 4), (x + _SWATCH, y - 4)], ink, 2.2, DASHES[index % len(DASHES)])
    return Box(x + 6, y - 10, 12, 12, ink, corner=2)


def y_axis(scale: Scale, *, width: float = WIDTH) -> list[Shape]:
    """Return lines across the chart at round values, and these values at the left."""
    shapes: list[Shape] = []
    for value in scale.ticks(4):
        y = scale.at(value)
        shapes.append(Line([(LEFT, y), (width - RIGHT, y)], "grid"))
        shapes.append(Text(LEFT - 6, y + 4, number(value), "end", _SMALL, "muted"))
    return shapes


def x_axis(scale: Scale, bottom: float, label: str, *, width: float = WIDTH) -> list[Shape]:
    """Return a line along whole numbers, with what they are."""
    shapes: list[Shape] = [Line([(LEFT, bottom), (width - RIGHT, bottom)], "axis")]
    for value in scale.ticks(6, whole=True):
        x = scale.at(value)
        shapes += [Line([(x, bottom), (x, bottom + 4)]), Text(x, bottom + 16, number(value), "middle", _SMALL, "muted")]
    return [*shapes, axis_name(label, bottom, width=width)]


def axis_name(label: str, bottom: float, *, width: float = WIDTH) -> Shape:
    """Return what stands below an axis to say what it is."""
    return Text((LEFT + width - RIGHT) / 2, bottom + 33, fitted(label, width - LEFT, _SMALL), "middle", _SMALL, "muted")
