"""Curves, bars and intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffmm_dist.charts.axes import Scale, number
from diffmm_dist.charts.frame import HEIGHT, LEFT, RIGHT, WIDTH, axis_name, begin, x_axis, y_axis
from diffmm_dist.charts.shapes import (
    DASHES,
    MOST_SERIES,
    Box,
    Dot,
    Line,
    Picture,
    Shape,
    Text,
    fitted,
    series_ink,
    text_width,
)

MOST_POINTS = 400  # of a curve; more are thinned
_MOST_DOTS = 60
_SMALL = 11.0


@dataclass(frozen=True)
class Curve:
    """Values over epochs, ascending."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bars:
    """A value for each category, None where there is none, and between what it lies, if that is known."""

    name: str
    values: Sequence[float | None]
    ranges: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Row:
    """A value with its name, between what it lies if that is known, and what is written behind it."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    words: str = ""


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return points of which a curve looks as with all: of each of equal pieces the lowest and the highest."""
    if len(points) <= most:
        return list(points)
    pieces = max(1, (most - 2) // 2)
    kept = {0, len(points) - 1}
    for piece in range(pieces):
        inside = range(piece * len(points) // pieces, (piece + 1) * len(points) // pieces)
        kept |= {min(inside, key=lambda place: points[place][1]), max(inside, key=lambda place: points[place][1])}
    return [points[place] for place in sorted(kept)]


def line_chart(
    title: str, curves: Sequence[Curve], *, across: str = "epoch", mark: float | None = None, zero: bool = False
) -> Picture:
    """Return curves over epochs, at most ``MOST_SERIES``; powers of ten where values are far apart.

    Args:
        title: what the values are.
        curves: with at least one point in all.
        across: what the x axis is.
        mark: the epoch to mark as the best one.
        zero: the y axis begins at 0.
    """
    curves = [Curve(one.name, thinned(one.points)) for one in curves[:MOST_SERIES] if one.points]
    frame = begin(title, [one.name for one in curves] if len(curves) > 1 else [], lines=True)
    values = [y for one in curves for _, y in one.points]
    places = [x for one in curves for x, _ in one.points]
    top = frame.top if mark is None else frame.top + 10  # below the words of the mark
    up = Scale.around(min(values), max(values), frame.bottom, top, zero=zero, may_be_powers=not zero)
    along = Scale(min(places), max(max(places), min(places) + 1), LEFT + 4, WIDTH - RIGHT - 4)
    shapes = [*frame.shapes, *y_axis(up), *x_axis(along, frame.bottom, across)]
    if mark is not None and along.low <= mark <= along.high:
        shapes += _marked(along.at(mark), top, frame.bottom, f"best {across}: {mark:,.0f}")
    for index, one in enumerate(curves):
        ink = series_ink(index)
        drawn = [(along.at(x), up.at(y)) for x, y in one.points]
        shapes.append(Line(drawn, ink, 2, DASHES[index % len(DASHES)], one.name or title))
        if len(drawn) <= _MOST_DOTS:
            names = [f"{one.name or title}, {across} {x:,.0f}: {y:.6g}" for x, y in one.points]
            shapes += [Dot(x, y, 2.6, ink, name) for (x, y), name in zip(drawn, names, strict=True)]
    return Picture(WIDTH, HEIGHT, shapes, f"{title} by {across}: {', '.join(one.name for one in curves if one.name)}")


def _marked(x: float, top: float, bottom: float, words: str) -> list[Shape]:
    middle = min(max(x, LEFT + text_width(words, 10) / 2), WIDTH - text_width(words, 10) / 2)
    return [
        Line([(x, top), (x, bottom)], "muted", 1.2, "3 3", words),
        Text(middle, top - 4, words, "middle", 10, "muted"),
    ]


def bar_chart(title: str, categories: Sequence[str], bars: Sequence[Bars], *, across: str) -> Picture:
    """Return a group of bars for each category, one for each series, from 0 on.

    Args:
        title: what the values are.
        categories: below each group; a second line stands behind a line break.
        bars: the series.
        across: what the categories are.
    """
    frame = begin(title, [one.name for one in bars] if len(bars) > 1 else [])
    bottom = frame.bottom - (12 if any("\n" in name for name in categories) else 0)
    ends = [value for one in bars for value in one.values if value is not None]
    ends += [end for one in bars for pair in one.ranges if pair is not None for end in pair]
    up = Scale.around(min(ends, default=0.0), max(ends, default=1.0), bottom, frame.top, zero=True)
    shapes = [*frame.shapes, *y_axis(up), Line([(LEFT, up.at(0)), (WIDTH - RIGHT, up.at(0))], "axis")]
    room = (WIDTH - RIGHT - LEFT) / max(1, len(categories))
    wide = min(34.0, room * 0.8 / max(1, len(bars)))
    for place, name in enumerate(categories):
        middle = LEFT + (place + 0.5) * room
        shapes += _names_below(name, middle, bottom, room)
        for index, one in enumerate(bars):
            x = middle + (index - len(bars) / 2) * wide
            shapes += _bar(one, place, x, wide, up, series_ink(index), name)
    shapes.append(axis_name(across, frame.bottom))
    return Picture(WIDTH, HEIGHT, shapes, f"{title} by {across}")


def _names_below(name: str, middle: float, bottom: float, room: float) -> list[Shape]:
    lines = name.split("\n")
    return [
        Text(middle, bottom + 14 + 12 * number, fitted(line, room, 10), "middle", 10, "muted", title=line)
        for number, line in enumerate(lines)
    ]


def _bar(one: Bars, place: int, x: float, wide: float, up: Scale, ink: str, category: str) -> list[Shape]:
    value = one.values[place]
    if value is None:
        return []
    between = one.ranges[place] if one.ranges else None
    words = f"{one.name + ', ' if one.name else ''}{category.splitlines()[0]}: {value:.4g}"
    words += f" ({between[0]:.4g} to {between[1]:.4g})" if between else ""
    top, foot = sorted((up.at(value), up.at(0)))
    shapes: list[Shape] = [Box(x + 1, top, wide - 2, max(foot - top, 0.5), ink, title=words, corner=1.5)]
    if between:
        middle = x + wide / 2
        shapes.append(Line([(middle, up.at(between[0])), (middle, up.at(between[1]))], "text", 1.4, title=words))
    return shapes


def row_chart(title: str, rows: Sequence[Row], *, across: str, zero: bool = True, dots: bool = False) -> Picture:
    """Return values across, one below the other, each below its name, which may be long.

    Args:
        title: what the values are.
        rows: the values.
        across: their unit.
        zero: the axis has 0 on it.
        dots: values are dots on their ranges, not bars.
    """
    top, step = 26.0, 34.0
    height = top + step * len(rows) + 36
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    behind = max([text_width(row.words, _SMALL) for row in rows], default=0) + 8
    along = Scale.around(min(ends, default=0.0), max(ends, default=1.0), 2, WIDTH - behind - 2, zero=zero)
    bottom = top + step * len(rows)
    shapes: list[Shape] = [Text(0, 13, fitted(title, WIDTH, 13), size=13, bold=True, title=title)]
    for value in along.ticks(4):
        x = along.at(value)
        line = Line([(x, top), (x, bottom)], "axis" if value == 0 and dots else "grid")
        shapes += [line, Text(max(x, 8), bottom + 14, number(value), "middle", 10, "muted")]
    for index, row in enumerate(rows):
        shapes += _row(row, top + step * index, along, dots=dots)
    shapes.append(Text(0, bottom + 30, across, size=_SMALL, ink="muted"))
    return Picture(WIDTH, height, shapes, f"{title}: {', '.join(f'{row.name} {row.words}' for row in rows)}")


def _row(row: Row, y: float, along: Scale, *, dots: bool) -> list[Shape]:
    words = f"{row.name}: {row.words or number(row.value)}"
    shapes: list[Shape] = [Text(0, y + 13, fitted(row.name, WIDTH, _SMALL), size=_SMALL, title=row.name)]
    middle, x = y + 23, along.at(row.value)
    if not dots:
        start = along.at(max(along.low, 0.0))
        shapes.append(Box(start, middle - 5, max(x - start, 0.8), 10, "c0", title=words, corner=2))
    if row.low is not None and row.high is not None:
        shapes.append(Line([(along.at(row.low), middle), (along.at(row.high), middle)], "c0" if dots else "text", 2.2))
    if dots:
        shapes.append(Dot(x, middle, 4.5, "c0", words))
    return [*shapes, Text(WIDTH, middle + 4, row.words, "end", _SMALL, "muted")]
