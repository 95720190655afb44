"""A number with its band: the bound that nothing beats, low, middle and high."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calc.explain.terms import maximum, minimum


@dataclass(frozen=True, slots=True)
class Span:
    """A time or a rate. Of a time `bound` is the least possible, of a rate the most; low <= mid <= high.

    Each may be an array, of as many loads.
    """

    bound: Any
    low: Any
    mid: Any
    high: Any

    def __add__(self, other: Span) -> Span:
        """The sum of two times that err alike."""
        return Span(self.bound + other.bound, self.low + other.low, self.mid + other.mid, self.high + other.high)

    def times(self, factor: Any) -> Span:
        """So many of it."""
        return Span(self.bound * factor, self.low * factor, self.mid * factor, self.high * factor)

    def capped(self, most: Any) -> Span:
        """A rate of which nothing is above `most`, its new bound."""
        return Span(most, minimum(self.low, most), minimum(self.mid, most), minimum(self.high, most))

    def rate(self, amount: Any) -> Span:
        """`amount` of something in this time, per second."""
        return Span(amount / self.bound, amount / self.high, amount / self.mid, amount / self.low)


@dataclass(frozen=True, slots=True)
class Band:
    """Measured over predicted: `low` and `high` held 88 % of the runs that they were taken from."""

    low: float
    high: float

    def around(self, mid: Any, bound: Any) -> Span:
        """The time `mid` with this band, none of it below `bound`.

        >>> Band(0.5, 2.0).around(10.0, 6.0)
        Span(bound=6.0, low=6.0, mid=10.0, high=20.0)
        """
        mid = maximum(mid, bound)
        return Span(bound, maximum(mid * self.low, bound), mid, mid * self.high)


WIDE = 1.5
"""How much wider the band is on each side where no operator of the device, or of the engine, was measured."""


def widened(band: Band) -> Band:
    """The band for what was never measured."""
    return Band(band.low / WIDE, band.high * WIDE)
