"""The tables of ``estimate``: the answer, the frontier, and the operators of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.tables import Column, Row, Table, share
from calc.units import Interval, Quantity, format_count, format_decimal, format_duration_s, format_flops, format_number

if TYPE_CHECKING:
    from calc.commands.frontier import Row as Point
    from calc.speed.passes import PassTime
    from calc.speed.spans import Span


def answer_table(point: Point) -> Table:
    """Bound, low, middle and high value of every quantity."""
    answer = point.answer
    times = (("TTFT", answer.ttft), ("TPOT", answer.tpot), ("End to end", answer.e2e))
    rows = [_time_row(name, span) for name, span in times]
    rows.append(_rate_row("Output tokens/s", answer.output_rate))
    rows.append(_rate_row("Tokens/s per user", answer.user_rate))
    if point.cost is not None:
        rows.append(Row(("Cost per million output tokens", "", "", format_number(point.cost), "")))
    if point.meets_limits is not None:
        rows.append(Row(("Meets the limits", "", "", "yes" if point.meets_limits else "no", "")))
    names = ("Bound", "Low", "Mid", "High")
    return Table(title="Estimate", columns=(Column("Quantity"), *(Column(n, numeric=True) for n in names)), rows=rows)


def _time_row(name: str, span: Span | None) -> Row:
    if span is None:
        return Row((name, "", "", "–", ""))
    return Row((name, *(format_duration_s(value) for value in (span.bound, span.low, span.mid, span.high))))


def _rate_row(name: str, span: Span | None) -> Row:
    if span is None:
        return Row((name, "", "", "–", ""))
    return Row((name, *(_rate(value) for value in (span.bound, span.low, span.mid, span.high))))


def _rate(value: float) -> Quantity:
    return format_number(value, "tokens/s")


def frontier_table(points: Sequence[Point]) -> Table:
    """One row per batch size: times, rates, the limiting resource, the latency limits it exceeds, and its cost."""
    what = "Clients" if points and points[0].answer.asked.load == CLIENTS else "Batch"
    columns = (Column(what, numeric=True), *COLUMNS[1:])
    table = Table(title=f"By {what.lower()}", columns=columns, rows=[cells(point) for point in points])
    return table.with_columns([i for i in range(len(COLUMNS)) if i < LIMITS or any(row[i] for row in table.rows)])


COLUMNS = (
    Column("Batch", numeric=True),
    Column("TTFT", numeric=True),
    Column("TPOT", numeric=True),
    Column("TPOT, low to high", numeric=True, priority=2),
    Column("Tokens/s per user", numeric=True, priority=5),
    Column("Per user, low to high", numeric=True, priority=4),
    Column("Total tokens/s", numeric=True),
    Column("Total, low to high", numeric=True, priority=3),
    Column("Limited by", priority=1),
    Column("Limits", priority=6),
    Column("Cost per million", numeric=True, priority=6),
)
CLIENTS = "closed"
LIMITS = 9
"""Index of the first column that is shown only with limits or a price."""


def cells(point: Point) -> Row:
    """A row of `COLUMNS`."""
    answer = point.answer
    cost = "" if point.cost is None else format_number(point.cost)
    if answer.tpot is None or answer.ttft is None or answer.output_rate is None or answer.user_rate is None:
        times, rates = ("–", "–", ""), ("–", "", "–", "")
        missing = (format_count(point.batch), *times, *rates, "capacity", limits_kept(point), cost)
        return Row(missing, struck=True, remark=f"{answer.problem}." if answer.problem else "")
    tpot, user, every = answer.tpot, answer.user_rate, answer.output_rate
    band = Interval(format_duration_s(tpot.low), format_duration_s(tpot.high))
    rates = (_rate(user.mid), _band(user), _rate(every.mid), _band(every))
    waiting = f"{int(answer.batch):,} of {point.batch:,} requests fit at once; the others wait."
    return Row(
        (
            format_count(point.batch),
            format_duration_s(answer.ttft.mid),
            format_duration_s(tpot.mid),
            band,
            *rates,
            answer.limited_by,
            limits_kept(point),
            cost,
        ),
        remark=waiting if answer.batch < point.batch else "",
    )


def _band(rate: Span) -> str:
    """``59 to 116``"""
    return Interval(_rate(rate.low), _rate(rate.high))


def limits_kept(point: Point) -> str:
    """``✓``, or ``✗ TPOT 61.0 ms`` if that limit is exceeded; empty without limits."""
    if point.broken is None:
        return ""
    if not point.answer.fits:
        return "✗ does not fit"
    words = (f"{NAMES[one.name]} {format_duration_s(one.expected_s)}" for one in point.broken)
    return f"✗ {', '.join(words)}" if point.broken else "✓"


NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}


def operator_table(title: str, time: PassTime) -> Table:
    """The operators of a pass, slowest first."""
    columns = (
        Column("Operator"),
        Column("Runs", numeric=True, priority=1),
        Column("FLOPs", numeric=True, priority=3),
        Column("Bytes", numeric=True, priority=3),
        Column("FLOP/B", numeric=True, priority=2),
        Column("Limited by", priority=4),
        Column("Time", numeric=True),
        Column("Share", numeric=True),
    )
    whole = sum(one.time_s for one in time.operators)
    rows = []
    for one in sorted(time.operators, key=lambda one: -one.time_s):
        flops, n_bytes = float(one.operator.flops), float(one.operator.bytes)
        amounts = (format_flops(flops), format_decimal(round(n_bytes)))
        each = format_number(flops / n_bytes, "FLOP/B") if n_bytes else ""
        spent = (format_duration_s(one.time_s), share(one.time_s, whole))
        rows.append(Row((one.operator.name, format_count(one.operator.count), *amounts, each, one.limited_by, *spent)))
    total = (format_flops(time.flops), format_decimal(round(time.bytes)), "", time.limited_by, format_duration_s(whole))
    rows.append(Row(("sum", "", *total, share(1, 1)), strong=True))
    return Table(title=title, columns=columns, rows=rows)
