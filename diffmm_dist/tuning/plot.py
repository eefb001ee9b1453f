"""A search as a picture: an SVG that needs nothing beside it."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from diffmm_dist.tuning.journal import Journal, Trial
from diffmm_dist.words import shown

_WIDTH, _HEIGHT = 300, 210  # of a panel, pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 30, 40  # its margins
_COLUMNS = 3
_MOST_TICKS = 6
_COLOURS = {"complete": "#1f5fa8", "stopped": "#9aa7b5", "running": "#d9a441"}
_BEST = "#c2410c"
Scale = Callable[[float], float]


def plot(journal: Journal) -> str:
    """Return the figures of all trials in their order with the best so far, and below against each setting."""
    shown_trials = [trial for trial in journal.trials if journal.figure(trial) is not None]
    wide = _COLUMNS * _WIDTH
    keys = list(journal.search["space"])
    rows = math.ceil(len(keys) / _COLUMNS)
    height = _HEIGHT * (1 + rows) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" width="{wide}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#222">',
        f'<rect width="{wide}" height="{height}" fill="white"/>',
        *_legend(wide),
        _at(0, 20, _history(journal, shown_trials, wide)),
    ]
    for place, key in enumerate(keys):
        x, y = (place % _COLUMNS) * _WIDTH, 20 + (1 + place // _COLUMNS) * _HEIGHT
        parts.append(_at(x, y, _slice(journal, shown_trials, key)))
    return "\n".join([*parts, "</svg>", ""])


def _at(x: float, y: float, parts: Iterator[str]) -> str:
    return "\n".join([f'<g transform="translate({x:g} {y:g})">', *parts, "</g>"])


def _legend(wide: int) -> Iterator[str]:
    names = {"complete": "all its epochs", "stopped": "stopped early", "running": "not ended"}
    x = wide - 320
    for state, name in names.items():
        yield f'<circle cx="{x}" cy="14" r="4" fill="{_COLOURS[state]}"/><text x="{x + 8}" y="18">{name}</text>'
        x += 95
    yield f'<text x="12" y="18" fill="{_BEST}">line: best so far</text>'


def _history(journal: Journal, trials: Sequence[Trial], wide: int) -> Iterator[str]:
    """Yield the panel of the trials in their order."""
    last = max(1, len(journal.trials) - 1)
    figures = [journal.figure(trial) or 0.0 for trial in trials]
    x, y = _linear(0, last, _LEFT, wide - _RIGHT), _vertical(figures)
    yield from _frame(wide, f"valid {journal.metric} of each trial", _ticks_of(figures), y)
    for tick in _whole_ticks(last):
        yield f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">t{tick:03d}</text>'
    best, points = -math.inf, list[str]()
    for trial, figure in zip(trials, figures, strict=True):
        at = x(int(trial["name"][1:]))
        if figure > best:
            points += [f"{at:.1f},{y(best):.1f}"] if points else []
            points.append(f"{at:.1f},{y(figure):.1f}")
            best = figure
    if points:
        points.append(f"{x(last):.1f},{y(best):.1f}")
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{_BEST}" stroke-width="1.5"/>'
    for trial, figure in zip(trials, figures, strict=True):
        yield _dot(journal, trial, x(int(trial["name"][1:])), y(figure))


def _slice(journal: Journal, trials: Sequence[Trial], key: str) -> Iterator[str]:
    """Yield the panel of the trials against one setting."""
    figures = [journal.figure(trial) or 0.0 for trial in trials]
    y = _vertical(figures)
    yield from _frame(_WIDTH, key, _ticks_of(figures), y)
    place, ticks = _across(journal.search["space"][key])
    for at, text in ticks:
        yield f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{escape(text)}</text>'
    for trial, figure in zip(trials, figures, strict=True):
        yield _dot(journal, trial, place(trial["values"][key]), y(figure))


def _across(dimension: dict[str, Any]) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Return where a setting's values stand, and what is written below the axis."""
    low_x, high_x = _LEFT + 10.0, _WIDTH - _RIGHT - 10.0
    if "choice" in dimension:
        values = dimension["choice"]
        at = _linear(0, max(1, len(values) - 1), low_x, high_x)
        texts = [(at(place), _short(value)) for place, value in enumerate(values)]
        return lambda value: at(values.index(value)), texts[:: math.ceil(len(texts) / _MOST_TICKS)]
    form = next(name for name in ("uniform", "int", "log") if name in dimension and dimension[name] is not True)
    low, high = dimension[form]
    if form == "log" or dimension.get("log"):
        scale = _linear(math.log(low), math.log(high), low_x, high_x)
        middle = math.exp((math.log(low) + math.log(high)) / 2)
        return lambda value: scale(math.log(value)), [(scale(math.log(v)), f"{v:.3g}") for v in (low, middle, high)]
    linear = _linear(low, high, low_x, high_x)
    few = form == "int" and high - low <= _MOST_TICKS
    values = list(range(low, high + 1)) if few else [low, (low + high) / 2, high]
    return linear, [(linear(value), f"{value:.3g}") for value in values]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= 12 else f"{text[:11]}…"


def _dot(journal: Journal, trial: Trial, x: float, y: float) -> str:
    best = journal.best()
    ring = f' stroke="{_BEST}" stroke-width="2"' if best is not None and best["name"] == trial["name"] else ""
    values = ", ".join(f"{key}={_short(value)}" for key, value in trial["values"].items())
    title = f"{trial['name']}, {trial['state']}: {journal.figure(trial):.4f} after {trial['epochs']} epochs; {values}"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_COLOURS[trial["state"]]}" fill-opacity="0.8"{ring}>'
        f"<title>{escape(title)}</title></circle>"
    )


def _frame(wide: int, title: str, ticks: Sequence[float], y: Scale) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, wide - _RIGHT
    yield f'<text x="{_LEFT}" y="20" font-weight="600">{escape(title)}</text>'
    for tick in ticks:
        at = f"{y(tick):.1f}"
        yield f'<line x1="{_LEFT}" y1="{at}" x2="{right}" y2="{at}" stroke="#e5e7eb"/>'
        yield f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    yield f'<path d="M{_LEFT} {_TOP} V{bottom} H{right}" fill="none" stroke="#888"/>'


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _bounds(figures: Sequence[float]) -> tuple[float, float]:
    low, high = min(figures, default=0.0), max(figures, default=1.0)
    margin = (high - low) * 0.05 or 0.05
    return low - margin, high + margin


def _vertical(figures: Sequence[float]) -> Scale:
    low, high = _bounds(figures)
    return _linear(low, high, _HEIGHT - _BOTTOM, _TOP)


def _ticks_of(figures: Sequence[float]) -> list[float]:
    """Return some round numbers between the least and the largest."""
    low, high = _bounds(figures)
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(step * factor for factor in (0.5, 1, 2, 5) if (high - low) / (step * factor) <= 6)
    first = math.ceil(low / step)
    return [step * number for number in range(first, math.floor(high / step) + 1)]


def _whole_ticks(last: int) -> list[int]:
    step = max(1, math.ceil(last / 10))
    return list(range(0, last + 1, step))
