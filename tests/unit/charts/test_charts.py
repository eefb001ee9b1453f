"""Charts: where values lie, what is thinned, and that nobody's names become markup."""

import io
import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from diffmm_dist.charts.axes import Scale, number
from diffmm_dist.charts.neighbors import MOST, Neighbor, neighbors
from diffmm_dist.charts.plots import MOST_POINTS, Bars, Curve, Row, bar_chart, line_chart, row_chart, thinned
from diffmm_dist.charts.png import png
from diffmm_dist.charts.shapes import DARK, LIGHT, MOST_SERIES, Box, Dot, Line, Text, fitted, stacked
from diffmm_dist.charts.svg import svg

EVIL = "<script>alert('1')</script>&\"\x1b[31m\u202e"


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (0.031, 0.094, [0.04, 0.06, 0.08]), (0, 4300, [0, 1000, 2000, 3000, 4000]),
    (-3, 3, [-2, 0, 2]),
])  # fmt: skip
def test_ticks_are_round_and_inside(low, high, expected):
    scale = Scale.around(low, high, 0, 100)
    assert scale.ticks(4) == pytest.approx(expected)
    assert all(0 <= scale.at(tick) <= 100 for tick in scale.ticks(4))


def test_epochs_have_whole_ticks():
    assert Scale(0, 3, 0, 100).ticks(6, whole=True) == [0, 1, 2, 3]
    assert Scale(0, 10_000, 0, 100).ticks(6, whole=True) == [0, 2000, 4000, 6000, 8000, 10_000]


def test_values_far_apart_are_shown_by_powers():
    scale = Scale.around(1e-4, 10.0, 0, 100, may_be_powers=True)
    assert scale.ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1, 10])
    places = [scale.at(tick) for tick in scale.ticks()]
    assert all(b - a == pytest.approx(places[1] - places[0]) for a, b in pairwise(places))
    assert not Scale.around(1, 10, 0, 100, may_be_powers=True).powers
    assert not Scale.around(0, 1e6, 0, 100, may_be_powers=True).powers


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-30])
def test_a_single_value_has_an_axis_around_it(value):
    scale = Scale.around(value, value, 0, 100)
    assert scale.low < value < scale.high
    assert 1 <= len(scale.ticks()) <= 12
    assert math.isfinite(scale.at(value))


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (0.05, "0.05"), (1200, "1,200"), (43_000, "43k"), (3.4e6, "3.4M"), (2e-6, "2e-06"), (-0.25, "-0.25"),
    (7e12, "7T"),
])  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_thinned_curve_keeps_its_ends_and_extremes():
    points = [(float(x), math.sin(x / 40)) for x in range(10_000)]
    points[4321] = (4321.0, 50.0)
    points[7777] = (7777.0, -50.0)
    few = thinned(points)
    assert len(few) <= MOST_POINTS
    assert few == sorted(few)
    assert {points[0], points[-1], points[4321], points[7777]} <= set(few)
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_curves_lie_where_their_values_are():
    picture = line_chart("recall", [Curve("a", [(0, 0.0), (10, 1.0)]), Curve("b", [(0, 0.5), (10, 0.5)])], mark=10)
    lines = {shape.title: shape.points for shape in picture.shapes if isinstance(shape, Line) and shape.width == 2}
    (x0, low), (x1, high) = lines["a"]
    assert x0 < x1
    assert low > high  # y goes down
    assert lines["b"][0][1] == pytest.approx((low + high) / 2)
    words = [shape.text for shape in picture.shapes if isinstance(shape, Text)]
    assert "best epoch: 10" in words
    assert {"a", "b", "recall", "epoch"} <= set(words)
    dots = [shape.title for shape in picture.shapes if isinstance(shape, Dot)]
    assert "a, epoch 10: 1" in dots


def test_a_chart_of_very_many_epochs_is_small():
    curves = [Curve(str(index), [(float(x), float(x % 97)) for x in range(10_000)]) for index in range(MOST_SERIES + 5)]
    assert len(svg(line_chart("loss", curves))) < 60_000


def test_bars_are_as_high_as_their_values_with_their_ranges():
    bars = [Bars("a", [0.2, None], [(0.1, 0.3), None]), Bars("b", [0.4, 0.0])]
    picture = bar_chart("recall", ["1-2\n10 users", "3\n4 users"], bars, across="activity")
    drawn = {box.title: box for box in picture.shapes if isinstance(box, Box) and box.title}
    assert set(drawn) == {"a, 1-2: 0.2 (0.1 to 0.3)", "b, 1-2: 0.4", "b, 3: 0"}
    assert drawn["b, 1-2: 0.4"].height == pytest.approx(2 * drawn["a, 1-2: 0.2 (0.1 to 0.3)"].height)
    ranges = [line for line in picture.shapes if isinstance(line, Line) and line.title]
    assert len(ranges) == 1
    assert ranges[0].points[0][1] - ranges[0].points[1][1] == pytest.approx(drawn["b, 1-2: 0.4"].height / 2)


def test_rows_have_a_dot_inside_their_range():
    picture = row_chart("recall", [Row("a", 0.2, 0.1, 0.3, "0.2")], across="mean", zero=False, dots=True)
    dot = next(shape for shape in picture.shapes if isinstance(shape, Dot))
    left, right = next(shape.points for shape in picture.shapes if isinstance(shape, Line) and shape.width == 2.2)
    assert left[0] < dot.x < right[0]
    assert dot.x == pytest.approx((left[0] + right[0]) / 2)


def test_neighbours_beyond_a_dozen_are_counted():
    around = [Neighbor(f"item {index}", "new", 0.5, "in test") for index in range(MOST + 5)]
    words = [shape.text for shape in neighbors("after", "user 1", around, words="w").shapes if isinstance(shape, Text)]
    assert "and 5 more" in words
    assert "0.5 in test" in words
    assert sum(word.startswith("item") for word in words) == MOST
    assert "none" in [shape.text for shape in neighbors("t", "u", [], words="w").shapes if isinstance(shape, Text)]


def pictures(name):
    return [
        line_chart(name, [Curve(name, [(0, 1.0), (1, 2.0)]), Curve(name, [(0, 3.0)])], across=name, mark=1),
        bar_chart(name, [f"{name}\n{name}"], [Bars(name, [1.0], [(0.5, 1.5)]), Bars(name, [2.0])], across=name),
        row_chart(name, [Row(name, 1.0, 0.5, 2.0, name)], across=name),
        neighbors(name, name, [Neighbor(name, "gone", 1.0, name)], words=name),
    ]


@pytest.mark.parametrize("number_of", range(4))
def test_names_are_never_markup(number_of):
    text = svg(pictures(EVIL)[number_of])
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    tags = {element.tag for element in ElementTree.fromstring(text).iter()}
    assert tags <= {"svg", "text", "title", "polyline", "rect", "circle"}


def test_pictures_are_drawn_as_png_too():
    image = pytest.importorskip("PIL.Image")
    together = stacked(pictures("a name that is rather long, as names are"), words="all")
    drawn = image.open(io.BytesIO(png(together)))
    assert drawn.size == (round(2 * (together.width + 16)), round(2 * (together.height + 16)))
    colours = {colour for _, colour in drawn.getcolors(1 << 20)}
    inks = [tuple(bytes.fromhex(LIGHT[ink][1:])) for ink in ("paper", "text", "c0", "c1", "grid")]
    assert set(inks) <= colours


def test_every_ink_has_both_colours():
    assert set(LIGHT) == set(DARK)
    assert {f"c{index}" for index in range(MOST_SERIES)} <= set(LIGHT)


def test_long_texts_keep_both_ends():
    text = fitted("a" * 50 + "z" * 50, 100, 10)
    assert text[0] == "a"
    assert text[-1] == "z"
    assert len(text) < 20
    assert fitted("short", 100, 10) == "short"
