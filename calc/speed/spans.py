"""A value with its band: bound, low, middle and high."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calc.explain.terms import maximum, minimum


@dataclass(frozen=True, slots=True)
class Span:
    """A time or a rate. `bound` is the least possible time or the highest possible rate; low <= mid <= high.

    Each field may be an array with one entry per load.
    """

    bound: Any
    low: Any
    mid: Any
    high: Any

    def __add__(self, other: Span) -> Span:
        """The sum of two times with correlated errors."""
        return Span(self.bound + other.bound, self.low + other.low, self.mid + other.mid, self.high + other.high)

    def times(self, factor: Any) -> Span:
        """The span multiplied by a number."""
        return Span(self.bound * factor, self.low * factor, self.mid * factor, self.high * factor)

    def capped(self, most: Any) -> Span:
        """A rate limited to `most`, which becomes its bound."""
        return Span(most, minimum(self.low, most), minimum(self.mid, most), minimum(self.high, most))

    def rate(self, amount: Any) -> Span:
        """The rate of `amount` per this time, per second."""
        return Span(amount / self.bound, amount / self.high, amount / self.mid, amount / self.low)


@dataclass(frozen=True, slots=True)
class Band:
    """Ratios of measured to predicted: 88 % of the runs behind this band are between `low` and `high`."""

    low: float
    high: float

    def around(self, mid: Any, bound: Any) -> Span:
        """The time `mid` with this band, clipped to at least `bound`.

        >>> Band(0.5, 2.0).around(10.0, 6.0)
        Span(bound=6.0, low=6.0, mid=10.0, high=20.0)
        """
        mid = maximum(mid, bound)
        return Span(bound, maximum(mid * self.low, bound), mid, mid * self.high)


WIDE = 1.5
"""How much wider the band is on each side if no operator of the device, or of the engine, was measured."""


def widened(band: Band) -> Band:
    """A wider band, for anything without measurements."""
    return Band(band.low / WIDE, band.high * WIDE)
