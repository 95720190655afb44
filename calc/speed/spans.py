"""A number with its band: the bound that nothing beats, low, middle and high."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A time or a rate. Of a time `bound` is the least possible, of a rate the most; low <= mid <= high."""

    bound: float
    low: float
    mid: float
    high: float

    def __add__(self, other: Span) -> Span:
        """The sum of two times that err alike."""
        return Span(self.bound + other.bound, self.low + other.low, self.mid + other.mid, self.high + other.high)

    def times(self, factor: float) -> Span:
        """So many of it."""
        return Span(self.bound * factor, self.low * factor, self.mid * factor, self.high * factor)

    def capped(self, most: float) -> Span:
        """A rate of which nothing is above `most`, its new bound."""
        return Span(most, min(self.low, most), min(self.mid, most), min(self.high, most))

    def rate(self, amount: float) -> Span:
        """`amount` of something in this time, per second."""
        return Span(amount / self.bound, amount / self.high, amount / self.mid, amount / self.low)


@dataclass(frozen=True, slots=True)
class Band:
    """Measured over predicted: `low` and `high` held 88 % of the runs that they were taken from."""

    low: float
    high: float

    def around(self, mid: float, bound: float) -> Span:
        """The time `mid` with this band, none of it below `bound`.

        >>> Band(0.5, 2.0).around(10.0, 6.0)
        Span(bound=6.0, low=6.0, mid=10.0, high=20.0)
        """
        mid = max(mid, bound)
        return Span(bound, max(bound, mid * self.low), mid, mid * self.high)


WIDE = 1.5
"""How much wider the band is on each side where no operator of the device, or of the engine, was measured."""


def widened(band: Band) -> Band:
    """The band for what was never measured."""
    return Band(band.low / WIDE, band.high * WIDE)
