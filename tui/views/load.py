"""The plots of a simulated load: its course over time, and how times grow with the rate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from calc.units import format_duration_s
from tui.views.chart import Axis, Chart, Level, Point, Series

if TYPE_CHECKING:
    from calc.simulate.summary import Outcome, Spread

DRAWN = 30
"""Points of the course that are drawn: means over as many equal stretches of time."""
TIMES = (("ttft", "TTFT", "●", "○"), ("tpot", "TPOT", "◆", "+"))


def course_chart(seen: Outcome, *, title: str = "Over time") -> Chart:
    """Requests that run and wait, and the share of the cache that is held, over time."""
    course = seen.course
    columns = (
        ("running", "●", course.running),
        ("waiting", "○", course.waiting),
        ("cache held, %", "×", tuple(100 * share for share in course.cache)),
    )
    series = tuple(
        Series(label=label, symbol=symbol, colour=colour, points=_thinned(course.time_s, values))
        for colour, (label, symbol, values) in enumerate(columns)
    )
    return Chart(
        title=title,
        x=Axis(title="time, s", from_zero=True),
        y=Axis(title="requests · % of the cache", from_zero=True),
        series=series,
        empty="nothing has run",
    )


def _thinned(times: Sequence[float], values: Sequence[float]) -> tuple[Point, ...]:
    """Means of neighbours, at the middle of each stretch."""
    each = max(1, len(values) // DRAWN)
    parts = [values[i : i + each] for i in range(0, len(values), each)]
    width = times[0] * each if times else 0.0
    return tuple(((i + 0.5) * width, sum(part) / len(part)) for i, part in enumerate(parts))


def rate_chart(
    points: Sequence[tuple[float, Outcome]],
    *,
    limits: Mapping[str, float] | None = None,
    percent: int = 99,
    unit: str = "requests per second",
    title: str = "By rate",
) -> Chart:
    """The median and p99 of TTFT and TPOT against the rate, or the number of users, with the limits as levels."""
    drawn = sorted(points, key=lambda point: point[0])
    series = []
    for colour, (name, label, high, middle) in enumerate(TIMES):
        for at, symbol in ((percent, high), (50, middle)):
            found = tuple((rate, value) for rate, seen in drawn if (value := _at(seen.spread(name), at)) is not None)
            series.append(Series(label=f"{label} p{at}", symbol=symbol, colour=colour, points=found))
    levels = tuple(
        Level(label=f"{name.upper()} {format_duration_s(value)}", value=value)
        for name, value in (limits or {}).items()
        if name != "e2e"
    )
    return Chart(
        title=title,
        x=Axis(title=unit, tick=lambda value: f"{value:.3g}"),
        y=Axis(title="time", log=True, tick=lambda value: str(format_duration_s(value))),
        series=tuple(series),
        levels=levels,
        empty="no rate was simulated",
    )


def _at(spread: Spread | None, percent: int) -> float | None:
    return None if spread is None else spread.percentile(percent)
