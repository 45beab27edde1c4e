"""The axes of charts: a logarithmic one on which zero and infinity have places of their own, and a linear one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MOST_TICKS = 8
LANE = 26.0
"""Pixels between the logarithmic part and the place of zero or infinity."""


@dataclass(frozen=True)
class LogScale:
    """A logarithmic axis from pixel `start` to pixel `end`, which may be less than `start`.

    With start 0, end 126 and the values 0, 0.01 and 1: 0 is at pixel 0, 0.01 at 26 and 1 at 126.
    """

    start: float
    end: float
    low: int
    """Decades: 10**low to 10**high."""
    high: int
    has_zero: bool
    has_infinity: bool

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> LogScale:
        """Return an axis of whole decades that contains all values, which are not negative."""
        seen = list(values)
        positive = [value for value in seen if 0 < value < math.inf]
        low = math.floor(math.log10(min(positive))) if positive else 0
        high = math.ceil(math.log10(max(positive))) if positive else 1
        return cls(start, end, low, max(high, low + 1), 0 in seen, math.inf in seen)

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        if value == 0:
            return self.start
        if value == math.inf:
            return self.end
        lane = math.copysign(LANE, self.end - self.start)
        first = self.start + lane * self.has_zero
        last = self.end - lane * self.has_infinity
        return round(first + (math.log10(value) - self.low) / (self.high - self.low) * (last - first), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return pixel and label of zero, of some decades, and of infinity."""
        step = math.ceil((self.high - self.low) / MOST_TICKS)
        decades = [(self.place(10.0**power), _power(power)) for power in range(self.low, self.high + 1, step)]
        zero = [(self.start, "0")] if self.has_zero else []
        return [*zero, *decades, *([(self.end, "∞")] if self.has_infinity else [])]


@dataclass(frozen=True)
class LinearScale:
    """A linear axis from zero. `start` is the pixel of zero, and `end` that of `high`."""

    start: float
    end: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> LinearScale:
        """Return an axis a little longer than the greatest of the values, which are not negative."""
        return cls(start, end, 1.05 * max(values))

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        return round(self.start + value / self.high * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return pixel and label of four to nine round values: for `high` 1.05 they are 0, 0.25, 0.5, 0.75 and 1."""
        power = 10.0 ** math.floor(math.log10(self.high))
        step = power / 4 if self.high < 2 * power else power / 2 if self.high < 5 * power else power
        return [(self.place(n * step), f"{n * step:g}") for n in range(int(self.high / step) + 1)]


def _power(power: int) -> str:
    if -2 <= power <= 3:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
