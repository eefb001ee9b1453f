"""What a picture is made of; x goes to the right and y down, in units that are pixels at full size.

Shapes have an ink, not a colour: ``text``, ``muted``, ``axis``, ``grid``, ``paper`` or a series' ``c0`` to ``c6``. So a
page can draw them in light and dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffmm_dist.safe_text import visible

# Of series those of Okabe and Ito, which colour-blind people tell apart; dark ones are lighter, with the same hues.
LIGHT = {
    "text": "#1b1f24", "muted": "#5b6570", "axis": "#8a949e", "grid": "#e3e7eb", "paper": "#ffffff",
    "c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#b4578f", "c4": "#b07d00", "c5": "#3f9fd8",
    "c6": "#6e6e6e",
}  # fmt: skip
DARK = {
    "text": "#e7ebef", "muted": "#a3adb8", "axis": "#6f7a85", "grid": "#2d343b", "paper": "#161a1f",
    "c0": "#5cb6f2", "c1": "#ff9255", "c2": "#35c99b", "c3": "#e79ac6", "c4": "#f0c04d", "c5": "#9ad4f7",
    "c6": "#b5b5b5",
}  # fmt: skip
MOST_SERIES = 7
DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 3")  # they tell series apart in print, too


@dataclass(frozen=True)
class Line:
    """A line through points; ``title`` is shown where the pointer rests."""

    points: Sequence[tuple[float, float]]
    ink: str = "axis"
    width: float = 1.0
    dash: str = ""
    title: str = ""


@dataclass(frozen=True)
class Box:
    """A filled rectangle, with an outline of another ink if one is named."""

    x: float
    y: float
    width: float
    height: float
    ink: str
    outline: str = ""
    title: str = ""
    corner: float = 0.0


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    ink: str
    title: str = ""


@dataclass(frozen=True)
class Text:
    """Words, beginning, in the middle of, or ending at x; y is where letters stand."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    size: float = 12.0
    ink: str = "text"
    bold: bool = False
    title: str = ""


Shape = Line | Box | Dot | Text


@dataclass(frozen=True)
class Picture:
    """Shapes on a sheet.

    Attributes:
        width: of the sheet.
        height: of the sheet.
        shapes: later ones lie over earlier ones.
        words: what it shows, for those who cannot see it.
    """

    width: float
    height: float
    shapes: Sequence[Shape]
    words: str


def series_ink(index: int) -> str:
    """Return the ink of a series."""
    return f"c{index % MOST_SERIES}"


def text_width(text: str, size: float) -> float:
    """Return about how wide a text is."""
    return 0.56 * size * len(text)


def fitted(text: str, width: float, size: float) -> str:
    """Return a text as it will be seen, or its beginning and end, so that it is about as wide as there is room for."""
    text = visible(text)
    room = max(3, int(width / (0.56 * size)))
    if len(text) <= room:
        return text
    head = (room - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


def stacked(pictures: Sequence[Picture], *, words: str, gap: float = 16) -> Picture:
    """Return pictures one below the other as one."""
    shapes: list[Shape] = []
    top = 0.0
    for picture in pictures:
        shapes += [_moved(shape, top) for shape in picture.shapes]
        top += picture.height + gap
    return Picture(max(picture.width for picture in pictures), top - gap, shapes, words)


def _moved(shape: Shape, down: float) -> Shape:
    if isinstance(shape, Line):
        return replace(shape, points=[(x, y + down) for x, y in shape.points])
    return replace(shape, y=shape.y + down)
