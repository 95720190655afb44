"""A chart as data: series with their spread, axes and levels, and the scales and ticks that all drawings share.

Drawn as text by `chart_text`, as SVG and PNG by `chart_file`, as LaTeX by `tui.report.latex`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import ceil, floor, isfinite, log10
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line through `points` (x, y). `symbol` marks each point, so that series can be told apart without colour.

    `spread` has the least and greatest measured y at each point. `colour` is an index into the drawing's palette; with
    `joined` False only the points are drawn. Without a label it is not in the legend.
    """

    label: str
    symbol: str
    points: tuple[Point, ...]
    spread: tuple[tuple[float, float], ...] = ()
    colour: int = 0
    joined: bool = True

    @property
    def bounds(self) -> Iterator[float]:
        """All y values of the series."""
        return chain((y for _, y in self.points), *self.spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A horizontal line at `value` with its meaning: a limit, a ridge, a median."""

    label: str
    value: float
    symbol: str = "╌"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis: its title with the unit, and whether it is logarithmic. `tick` writes a value of the axis."""

    title: str
    log: bool = False
    tick: Callable[[float], str] = field(default=lambda value: f"{value:,.10g}")
    doubling: bool = False
    from_zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a plot shows, before it has a size and a format.

    `notes` say what could not be drawn, such as a level off the scale; `caption` says where the numbers come from.
    """

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    notes: tuple[str, ...] = ()
    empty: str = "nothing to plot yet"
    caption: str = ""

    @property
    def scales(self) -> tuple[Scale, Scale]:
        """The scales of both axes that hold every point, spread and level."""
        xs = [x for series in self.series for x, _ in series.points]
        ys = [y for series in self.series for y in series.bounds] + [level.value for level in self.levels]
        return scale_of(self.x, xs), scale_of(self.y, ys)


# The scales


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to positions: `place` maps them to a linear scale with the ends `low` and `high`."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        return log10(value) if self.log else value

    def share(self, value: float) -> float:
        """How far along the scale a value is, from 0 to 1."""
        return (self.place(value) - self.low) / (self.high - self.low)

    @property
    def start(self) -> float:
        """The value at the low end."""
        return 10**self.low if self.log else self.low

    def holds(self, value: float) -> bool:
        return (not self.log or value > 0) and self.low - 1e-9 <= self.place(value) <= self.high + 1e-9


def scale_of(axis: Axis, values: Sequence[float]) -> Scale:
    """The scale of an axis for all finite `values` (only positive ones if it is logarithmic)."""
    kept = [v for v in values if isfinite(v) and (not axis.log or v > 0)] or [1.0]
    low, high = min(kept), max(kept)
    if axis.log:
        return Scale(log10(low), max(log10(high), log10(low) + 0.01), True)
    if axis.from_zero:
        low, high = min(0.0, low), high + 0.08 * abs(high)
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return Scale(low, high, False)


def ticks(scale: Scale, *, count: int, doubling: bool = False) -> list[float]:
    """At most `count` round values inside `scale`: decades or doublings on a logarithmic one, else 1, 2, 5 steps.

    At least two, however small the chart is: a single label does not show a scale.
    """
    count = max(2, count)
    if scale.log and doubling:
        return _powers(scale, base=2, count=count)
    if scale.log:
        return _decades(scale, count=count)
    found = _steps(scale.low, scale.high, count=count)
    return found if len(found) > 1 else _at_least_two(scale.low, scale.high)


def _powers(scale: Scale, *, base: float, count: int) -> list[float]:
    step = log10(base)
    first, last = ceil(scale.low / step - 1e-9), floor(scale.high / step + 1e-9)
    stride = max(1, ceil((last - first + 1) / count))
    return [float(base) ** k for k in range(first, last + 1, stride)]


def _decades(scale: Scale, *, count: int) -> list[float]:
    """1, 2 and 5 of each decade if there is room; else 1 and 3; else 1; else fewer decades."""
    first, last = floor(scale.low), ceil(scale.high)
    for mantissas in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        values = [m * 10.0**k for k in range(first, last + 1) for m in mantissas]
        found = [v for v in values if scale.holds(v)]
        if len(found) <= count:
            return found if len(found) > 1 else _at_least_two(10**scale.low, 10**scale.high)
    return _powers(scale, base=10, count=count)


def _at_least_two(low: float, high: float) -> list[float]:
    """The first round values of which two are on the scale."""
    for count in range(2, 8):
        found = _steps(low, high, count=count)
        if len(found) > 1:
            break
    return found


def _steps(low: float, high: float, *, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(1, count - 1)
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]
