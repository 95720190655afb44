"""The plots of kvscope: from reports and measurements to charts. Pure; used by both front ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from calc.intensity.ridges import Ridge
from calc.intensity.study import IntensityReport
from calc.intensity.traffic import DecodePoint
from calc.intensity.words import figures
from calc.units import format_count, format_duration_s
from engine.measure.kinds.batch import BatchResult, BatchRow
from engine.measure.kinds.benchmark import BenchmarkResult, BenchmarkRow
from engine.measure.timing import latencies_s, percentile
from engine.records import Machine
from engine.text import plural
from tui.charts.chart import Axis, Chart, Level, Point, Series

if TYPE_CHECKING:
    from tui.live.predict import BatchPrediction
    from tui.live.sweep_times import SweepPrediction

NEAR = 2.6
"""A ridge up to this many times the highest point still belongs in a linear plot."""
NEAR_LOG = 6.0
"""The same on a logarithmic axis."""
LATENCY_WINDOW = 240
"""Tokens in the latency plot, which scrolls with the run."""


# Intensity


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _ridges(report: IntensityReport, *, highest: float, near: float) -> tuple[tuple[Level, ...], tuple[str, ...]]:
    """Ridges as levels, or as a note if they would squeeze the points into a corner. Ridges of common devices are
    marked."""
    drawn = [ridge for ridge in report.ridges if ridge.value <= near * highest]
    levels = tuple(
        Level(label=f"ridge {_ridge_name(ridge)} {ridge.value:,.0f}", value=ridge.value, symbol="┄") for ridge in drawn
    )
    above = [f"{_ridge_name(ridge)} {ridge.value:,.0f}" for ridge in report.ridges if ridge not in drawn]
    return levels, (f"above this scale: ridge {', '.join(above)}",) if above else ()


def _ridge_name(ridge: Ridge) -> str:
    return f"of a common {ridge.name}" if ridge.common else ridge.name


def prefill_chart(report: IntensityReport) -> Chart:
    """Intensity of prefill attention against context, on linear axes; a note says what limits decoding."""
    limit = report.shown_prefill.limit
    points = tuple((float(p.context), p.intensity) for p in report.prefill_by_context)
    levels = () if limit is None else (Level(label=f"limit {limit:,.1f}", value=limit),)
    highest = max([*(y for _, y in points), *(level.value for level in levels)])
    ridges, notes = _ridges(report, highest=highest, near=NEAR)
    return Chart(
        title=f"Prefill · {_what(report)}",
        x=Axis(title="context N, tokens", tick=format_count, from_zero=True),
        y=Axis(title="FLOP/B", tick=_number, from_zero=True),
        series=(Series(label="attention", symbol="●", points=points, colour=0),),
        levels=(*levels, *ridges),
        notes=(_decode_limit(report), *notes),
    )


def _what(report: IntensityReport) -> str:
    query = report.query
    mask = " · causal" if query.causal else ""
    if report.layers is not None:
        return f"all layers of {query.model.title}{mask}"
    return f"{query.attention} · d = {query.head_dim}{mask}"


def _decode_limit(report: IntensityReport) -> str:
    """What limits the attention of a decode step: ``decode 0.993: memory limits it (ridge 153, A100)``."""
    value, ridge = report.shown_decode.intensity, report.ridges[0]
    limit = "arithmetic" if value >= ridge.value else "memory"
    name = f", {ridge.name.split()[0]}" if ridge.common else ""
    return f"decode {figures(value)}: {limit} limits it (ridge {ridge.value:,.0f}{name})"


def decode_chart(report: IntensityReport) -> Chart:
    """Intensity of a decode step against batch, as queried and with the model's own grouping."""
    series = _layered_series(report) if report.layers is not None else _textbook_series(report)
    highest = max(y for s in series for _, y in s.points)
    levels, notes = _ridges(report, highest=highest, near=NEAR_LOG)
    query = report.query
    kind = "all layers" if report.layers is not None else str(query.attention)
    return Chart(
        title=f"Decode · {kind} · N = {query.context:,}",
        x=Axis(title="batch B, sequences", log=True, doubling=True, tick=format_count),
        y=Axis(title="FLOP/B", log=True, tick=_number),
        series=tuple(series),
        levels=levels,
        notes=notes,
    )


def _layered_series(report: IntensityReport) -> list[Series]:
    points = report.decode_by_batch
    return [
        Series(label="attention", symbol="+", colour=4, points=_points(points, "attention_intensity")),
        Series(label="linear layers", symbol="◆", colour=2, points=_points(points, "linear_intensity")),
        Series(label="step", symbol="●", colour=0, points=_points(points, "step_intensity")),
    ]


def _textbook_series(report: IntensityReport) -> list[Series]:
    query = report.query
    asked, own = query.group_size, query.model.group_size
    plain, grouped = report.decode_by_batch, report.decode_by_batch_grouped
    kind = {True: "MHA", False: f"g={asked}"}[asked == 1]
    series = [
        Series(label=f"attention {kind}", symbol="×", colour=1, points=_points(plain, "attention_intensity")),
        Series(label="linear layers", symbol="◆", colour=2, points=_points(plain, "linear_intensity")),
        Series(label=f"step {kind}", symbol="○", colour=3, points=_points(plain, "step_intensity")),
    ]
    if own != asked:
        name = "MHA" if own == 1 else f"GQA {own}"
        series.insert(
            1, Series(label=f"attention {name}", symbol="+", colour=4, points=_points(grouped, "attention_intensity"))
        )
        series.append(Series(label=f"step {name}", symbol="●", colour=0, points=_points(grouped, "step_intensity")))
    return series


def flash_chart(report: IntensityReport, flash: IntensityReport) -> Chart:
    """Prefill of standard attention and of FlashAttention side by side, on logarithmic axes."""
    lines = (("standard attention", "●", 0, report), ("FlashAttention", "×", 1, flash))
    series = tuple(
        Series(
            label=label,
            symbol=symbol,
            colour=colour,
            points=tuple((float(p.context), p.intensity) for p in each.prefill_by_context),
        )
        for label, symbol, colour, each in lines
    )
    limit = report.prefill.limit
    levels = () if limit is None else (Level(label=f"limit {limit:,.1f}", value=limit),)
    ridges, notes = _ridges(report, highest=max(y for s in series for _, y in s.points), near=NEAR_LOG)
    return Chart(
        title=f"Prefill · d = {report.query.head_dim}",
        x=Axis(title="context N, tokens", log=True, doubling=True, tick=format_count),
        y=Axis(title="FLOP/B", log=True, tick=_number),
        series=series,
        levels=(*levels, *ridges),
        notes=notes,
    )


def _points(rows: Sequence[DecodePoint], name: str) -> tuple[Point, ...]:
    return tuple((float(row.batch), float(getattr(row, name))) for row in rows)


# Measurements


def _time_axis(title: str, highest_s: float, *, log: bool = False) -> tuple[Axis, float]:
    """An axis in the unit that suits `highest_s`, and the factor for seconds."""
    unit, scale = next(
        ((u, k) for u, k, least in (("s", 1.0, 1.0), ("ms", 1e3, 1e-3)) if highest_s >= least), ("µs", 1e6)
    )
    return Axis(title=f"{title}, {unit}", log=log, tick=_measure, from_zero=not log), scale


def _measure(value: float) -> str:
    return f"{value:,.4g}"


def latency_chart(
    start_ns: int | None,
    token_times_ns: Sequence[int],
    *,
    predicted_s: float | None = None,
    window: int = LATENCY_WINDOW,
) -> Chart:
    """Time between consecutive tokens, for the last `window` tokens, with their median and the prediction."""
    recent = token_times_ns[-window - 1 :]
    values = latencies_s(recent)
    first = len(token_times_ns) - len(values) + 1
    middle = percentile(values, 50)
    axis, scale = _time_axis("time per token", max(values, default=0.0))
    points = tuple((float(first + i), v * scale) for i, v in enumerate(values))
    known = (("median", middle, "╌"), ("predicted", None if middle is None else predicted_s, "·"))
    levels = tuple(
        Level(label=f"{name} {format_duration_s(value)}", value=value * scale, symbol=symbol)
        for name, value, symbol in known
        if value is not None
    )
    scrolled = f"last {len(values):,}" if first > 2 else ""
    return Chart(
        title="● Latency per token" + (f" · {scrolled}" if scrolled else ""),
        x=Axis(title="token"),
        y=axis,
        series=(Series(label="measured", symbol=" " if len(values) > 40 else "●", points=points),),
        levels=levels,
        empty="waiting for the second token" if start_ns is not None else "no run yet",
    )


def by_length(rows: Iterable[BenchmarkRow]) -> list[BenchmarkRow]:
    """Rows of a latency sweep by prompt length; they are measured in another order."""
    return sorted(rows, key=lambda row: row.prompt_tokens)


def benchmark_chart(
    rows: Sequence[BenchmarkRow], predicted: SweepPrediction | None = None, *, new_tokens: int | None = None
) -> Chart:
    """Medians with and without the cache, with spread, against prompt length; both axes logarithmic; predictions as
    plain lines."""
    rows = by_length(rows)
    highest = max((max(r.with_cache_max_s, r.without_cache_max_s) for r in rows), default=0.0)
    axis, scale = _time_axis("time", highest, log=True)
    what = f" for {new_tokens} new tokens" if new_tokens is not None else ""

    def arm(label: str, symbol: str, colour: int, field: str) -> Series:
        times = [[scale * getattr(row, f"{field}_cache{part}_s") for part in ("", "_min", "_max")] for row in rows]
        points = tuple((float(row.prompt_tokens), median) for row, (median, _, _) in zip(rows, times, strict=True))
        spread = tuple((low, high) for _, low, high in times)
        return Series(label=label, symbol=symbol, colour=colour, points=points, spread=spread)

    return Chart(
        title=f"● Latency{what}",
        x=Axis(title="prompt, tokens", log=True, tick=format_count),
        y=axis,
        series=(
            *_expected_arms(rows, predicted, scale),
            arm("with cache", "●", 0, "with"),
            arm("without", "×", 1, "without"),
        ),
        empty="rows appear here as they are measured",
    )


def _expected_arms(rows: Sequence[BenchmarkRow], predicted: SweepPrediction | None, scale: float) -> Iterator[Series]:
    """The predictions with and without the cache, if any."""
    if predicted is None:
        return
    for arm, colour in (("with", 2), ("without", 3)):
        times = [(row.prompt_tokens, getattr(predicted.lengths[row.prompt_tokens], f"{arm}_cache_s")) for row in rows]
        points = tuple((float(length), scale * seconds) for length, seconds in times if seconds is not None)
        yield Series(label=f"{arm}, predicted", symbol="·", colour=colour, points=points)


def batch_decode_chart(rows: Sequence[BatchRow], predicted: BatchPrediction | None) -> Chart:
    """Total tokens per second against batch size: measured, and calc's prediction as a plain line."""
    order = sorted(range(len(rows)), key=lambda index: rows[index].batch)
    measured = [rows[index] for index in order]
    series = [
        Series(
            label="measured",
            symbol="●",
            points=tuple((float(row.batch), row.tokens_per_s) for row in measured),
            spread=tuple((row.batch / row.step_max_s, row.batch / row.step_min_s) for row in measured),
        )
    ]
    if predicted is not None:
        line = tuple((float(rows[index].batch), predicted.tokens_per_s[index]) for index in order)
        series.insert(0, Series(label="predicted", symbol="·", colour=1, points=line))
    return Chart(
        title="Total tokens per second of all rows",
        x=Axis(title="batch, rows", log=True, doubling=True, tick=format_count),
        y=Axis(title="tokens/s", tick=_number, from_zero=True),
        series=tuple(series),
        empty="batches appear here as they are measured",
    )


# Results as figures: with their captions


def benchmark_figure(result: BenchmarkResult, predicted: SweepPrediction | None = None) -> Chart:
    """The chart of a finished benchmark with where and how it was measured."""
    chart = benchmark_chart(result.rows, predicted, new_tokens=result.new_tokens)
    title = f"Time for a prompt and {plural(result.new_tokens, 'new token')}"
    caption = _caption(result.model, f"medians of {plural(result.repeats, 'repeat')}", result.machine)
    return replace(chart, title=title, caption=caption)


def batch_figure(result: BatchResult, predicted: BatchPrediction | None) -> Chart:
    """The chart of a finished batch run with where and how it was measured."""
    chart = batch_decode_chart(result.rows, predicted)
    caption = _caption(result.model, f"medians of {plural(result.repeats, 'round')}", result.machine)
    return replace(chart, caption=caption)


def _caption(model: str, medians: str, machine: Machine) -> str:
    return (
        f"{model}, {machine.dtype}; {medians}, bars from minimum to maximum\n"
        f"{machine.cpu}, {plural(machine.threads, 'thread')}, torch {machine.torch}"
    )
