"""A simulated load as plots, tables and sentences, from the documents that ``simulate`` prints for each run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calc.commands.tables import Column, Row, Table
from calc.units import Quantity, format_count, format_duration_s, format_number
from tui.charts.chart import Axis, Chart, Level, Point, Series

Run = Mapping[str, Any]
"""A run of the JSON document of ``simulate``."""

DRAWN = 30
"""Number of points drawn over time: means over that many equal intervals."""
TIMES = (("ttft", "TTFT", "●", "○"), ("tpot", "TPOT", "◆", "+"))
SPREADS = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("End to end", "e2e_s"), ("In the queue", "wait_s"))
PERCENTILES = ("mean", "p50", "p90", "p95", "p99")


# --- plots --------------------------------------------------------------------------------------------------


def course_chart(run: Run | None, *, title: str = "Over time") -> Chart:
    """Running and waiting requests, and the used share of the cache, over time."""
    course = {"time_s": (), "running": (), "waiting": (), "kv_used_share": ()} if run is None else run["over_time"]
    columns = (
        ("running", "●", course["running"]),
        ("waiting", "○", course["waiting"]),
        ("cache used, %", "×", tuple(100 * share for share in course["kv_used_share"])),
    )
    series = tuple(
        Series(label=label, symbol=symbol, colour=colour, points=_thinned(course["time_s"], values))
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
    """Means of neighbours, at the middle of each interval."""
    each = max(1, len(values) // DRAWN)
    parts = [values[i : i + each] for i in range(0, len(values), each)]
    width = times[0] * each if times else 0.0
    return tuple(((i + 0.5) * width, sum(part) / len(part)) for i, part in enumerate(parts))


def rate_chart(
    runs: Sequence[Run], *, limits: Mapping[str, float] | None = None, percent: int = 99, title: str = "Times by rate"
) -> Chart:
    """The median and a percentile of TTFT and TPOT against the rate, or the number of users, and the limits."""
    closed = bool(runs) and runs[0]["users"] is not None
    placed = sorted((float(run["users"] or run["rate"] or 0), run) for run in runs)
    series = []
    for colour, (name, label, high, middle) in enumerate(TIMES):
        for at, symbol in ((percent, high), (50, middle)):
            points = tuple((x, value) for x, run in placed if (value := _said(run, f"{name}_s", f"p{at}")) is not None)
            series.append(Series(label=f"{label} p{at}", symbol=symbol, colour=colour, points=points))
    levels = tuple(
        Level(label=f"{name.upper()} {format_duration_s(value)}", value=value)
        for name, value in (limits or {}).items()
        if name != "e2e"
    )
    return Chart(
        title=title,
        x=Axis(title="users" if closed else "requests per second", tick=format_number),
        y=Axis(title="time", log=True, tick=lambda value: str(format_duration_s(value))),
        series=tuple(series),
        levels=levels,
        empty="no rate was simulated",
    )


def _said(run: Run, name: str, at: str) -> float | None:
    spread = run[name]
    value: float | None = None if spread is None else spread[at]
    return value


# --- tables -------------------------------------------------------------------------------------------------


def rates_table(runs: Sequence[Run], most: float | None) -> Table:
    """One row per rate; `most` is the highest that meets the limits."""
    columns = (
        Column("Rate", numeric=True),
        Column("Of full", numeric=True, priority=2),
        Column("TTFT p50", numeric=True, priority=3),
        Column("TTFT p99", numeric=True),
        Column("TPOT p50", numeric=True, priority=3),
        Column("TPOT p99", numeric=True),
        Column("Waiting", numeric=True, priority=1),
        Column("Running", numeric=True, priority=1),
        Column("Preempted", numeric=True, priority=0),
        Column("Limits", priority=4),
    )
    return Table(title="By rate", columns=columns, rows=[_rate_row(run, most) for run in runs])


def _rate_row(run: Run, most: float | None) -> Row:
    mark = " ◂" if most is not None and run["rate"] == most else ""
    times = [_time(_said(run, f"{name}_s", at)) for name in ("ttft", "tpot") for at in ("p50", "p99")]
    kept = {None: "", True: "met", False: "exceeded"}[run["keeps_limits"]]
    cells = (
        Quantity(f"{format_number(run['rate'])}/s{mark}", run["rate"], "requests/s"),
        Quantity(f"{run['utilization']:.0%}", run["utilization"]),
        *times,
        format_number(run["waiting_mean"]),
        format_number(run["running_mean"]),
        format_count(run["preemptions"]),
        kept,
    )
    return Row(cells, struck=not run["stable"])


def times_table(run: Run | None) -> Table:
    """Percentiles of every time at one rate."""
    columns = (Column("Time"), *(Column(name.capitalize(), numeric=True) for name in PERCENTILES))
    rows = [] if run is None else [(name, *(_time(_said(run, key, at)) for at in PERCENTILES)) for name, key in SPREADS]
    title = "Times" if run is None else f"Times at {format_number(run['rate'])} per second"
    return Table(title=title, columns=columns, rows=[*map(Row, rows)])


def _time(value: float | None) -> str:
    return "–" if value is None else format_duration_s(value)


# --- sentences ----------------------------------------------------------------------------------------------


def most_sentence(found: Run | None, limits: Mapping[str, float]) -> str:
    """The rate at which the limits are exceeded."""
    if not limits:
        return "Set limits to see the rate at which p99 exceeds them."
    if found is None:
        return ""
    kept = " and ".join(f"{name.upper()} {format_duration_s(value)}" for name, value in limits.items())
    broken = " and ".join(name.upper() for name in found["breaks_above"])
    if found["value"] is None:
        return f"Nothing meets {kept} at p99: even a single request does not meet {broken}."
    if found["above"] is None:
        return f"p99 meets {kept} up to the full load, {format_number(found['value'])} requests per second."
    return (
        f"p99 meets {kept} up to {format_number(found['value'])} requests per second; beyond that, {broken} is "
        "exceeded."
    )


def rate_sentence(run: Run) -> str:
    """What users see at one rate."""
    ttft, tpot = run["ttft_s"], run["tpot_s"]
    sees = f"TTFT {_time(ttft['p50'])} at the median, {_time(ttft['p99'])} at p99"
    then = "" if tpot is None else f"; TPOT {_time(tpot['p50'])}, {_time(tpot['p99'])}"
    return f"At {format_number(run['rate'])}/s: {sees}{then}.{_drains(run['utilization'])}"


def _drains(used: float) -> str:
    if used < 1:
        return ""
    return " Above the full load the queue never drains." if used > 1 else " At the full load a queue never drains."
