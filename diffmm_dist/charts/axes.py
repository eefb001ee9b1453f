"""Axes: where values lie on a sheet, and which of them are written beside it."""

import math
from dataclasses import dataclass

_ROOM = 0.06  # of an axis, beyond the outermost values
_FAR_APART = 300  # from such a ratio on, positive values are shown by their powers of ten


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        low: the value at ``start``.
        high: the value at ``stop``.
        start: a place.
        stop: another one, before or behind it.
        powers: equal ratios are equally far apart, not equal differences.
    """

    low: float
    high: float
    start: float
    stop: float
    powers: bool = False

    @classmethod
    def around(
        cls, low: float, high: float, start: float, stop: float, *, zero: bool = False, may_be_powers: bool = False
    ) -> "Scale":
        """Return a scale with a little room around values, from zero on if asked for."""
        if may_be_powers and low > 0 and high / low >= _FAR_APART:
            room = (high / low) ** _ROOM
            return cls(low / room, high * room, start, stop, powers=True)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if high <= low:
            half = abs(low) / 10 or 0.5
            low, high = low - half, high + half
        room = (high - low) * _ROOM
        bottom = low if zero and low == 0 else low - room
        return cls(bottom, high + room, start, stop)

    def at(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (math.log(one) if self.powers else one for one in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, count: int = 5, *, whole: bool = False) -> list[float]:
        """Return round values inside the scale, about as many as asked for; only whole ones if so meant."""
        if self.powers:
            lowest, highest = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            return [
                10.0**power for power in range(lowest, highest + 1, max(1, -(-(highest - lowest + 1) // (count + 1))))
            ]
        step = _round_step((self.high - self.low) / max(count, 1))
        if whole:
            step = max(1.0, round(step))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) + 0.0 for number in range(first, last + 1)]


def _round_step(step: float) -> float:
    """Return 1, 2, 2.5 or 5 times a power of ten, the first of them that is not much smaller."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.75 * step)


def number(value: float) -> str:
    """Return a number as short as it can be read: 0.05, 1,200, 3.4M, 2e-06."""
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.2g}"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.3g}{letter}"
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.4g}"
