"""Pictures as SVG inside a page, which has the colours (``style``)."""

from collections.abc import Callable
from html import escape

from diffmm_dist.charts.shapes import DARK, LIGHT, Box, Dot, Line, Picture, Shape, Text
from diffmm_dist.safe_text import visible

_LONGEST_TITLE = 300


def style() -> str:
    """Return what a page's style sheet must say: the inks in light and dark; paper is light."""
    light, dark = (";".join(f"--{ink}:{colour}" for ink, colour in inks.items()) for inks in (LIGHT, DARK))
    rules = "".join(f".f-{ink}{{fill:var(--{ink})}}.s-{ink}{{stroke:var(--{ink});fill:none}}" for ink in LIGHT)
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{rules}"
        "svg{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;display:block;width:100%;height:auto}"
    )


def safe(text: str) -> str:
    """Return a text as HTML, whoever wrote it: markup escaped, and what would not be seen as itself."""
    return escape(visible(text))


def svg(picture: Picture) -> str:
    """Return the SVG of a picture, as wide as there is room for up to its own width."""
    head = (
        f'<svg viewBox="0 0 {_number(picture.width)} {_number(picture.height)}" role="img" '
        f'style="max-width:{_number(picture.width)}px" aria-label="{safe(picture.words)}">'
    )
    return "".join([head, *map(_shape, picture.shapes), "</svg>"])


def _shape(shape: Shape) -> str:
    return _DRAWN[type(shape)](shape)


def _line(line: Line) -> str:
    places = " ".join(f"{_number(x)},{_number(y)}" for x, y in line.points)
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    look = f'class="s-{line.ink}" stroke-width="{_number(line.width)}" stroke-linejoin="round"{dash}'
    return _titled(f'<polyline points="{places}" {look}', "polyline", line.title)


def _box(box: Box) -> str:
    place = " ".join(
        f'{name}="{_number(value)}"'
        for name, value in (("x", box.x), ("y", box.y), ("width", box.width), ("height", box.height))
    )
    corner = f' rx="{_number(box.corner)}"' if box.corner else ""
    outline = f' style="stroke:var(--{box.outline})"' if box.outline else ""
    return _titled(f'<rect {place} class="f-{box.ink}"{corner}{outline}', "rect", box.title)


def _dot(dot: Dot) -> str:
    place = f'cx="{_number(dot.x)}" cy="{_number(dot.y)}" r="{_number(dot.radius)}"'
    return _titled(f'<circle {place} class="f-{dot.ink}"', "circle", dot.title)


def _text(text: Text) -> str:
    look = f'font-size="{_number(text.size)}" class="f-{text.ink}"'
    look += f' text-anchor="{text.anchor}"' if text.anchor != "start" else ""
    look += ' font-weight="600"' if text.bold else ""
    title = f"<title>{safe(text.title[:_LONGEST_TITLE])}</title>" if text.title else ""
    return f'<text x="{_number(text.x)}" y="{_number(text.y)}" {look}>{safe(text.text)}{title}</text>'


_DRAWN: dict[type, Callable[..., str]] = {Line: _line, Box: _box, Dot: _dot, Text: _text}


def _titled(start: str, tag: str, title: str) -> str:
    return f"{start}><title>{safe(title[:_LONGEST_TITLE])}</title></{tag}>" if title else f"{start}/>"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
