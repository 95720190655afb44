"""What was measured as drawings: latency against prompt length, tokens a second against batch. Pure, without torch."""

from collections.abc import Callable, Sequence

from engine.commands.line_plot import Drawing, Line, Point
from engine.measure.kinds.batch import BatchFinished, BatchResult
from engine.measure.kinds.benchmark import BenchmarkFinished, BenchmarkResult, BenchmarkRow
from engine.records import Event, Machine
from engine.text import duration, plural

_BLUE, _RED, _GREY = "#1f5fa8", "#b3432b", "#6b6b6b"
_Field = Callable[[BenchmarkRow], float]


def drawing_of(finished: Event, predicted_tokens_per_s: Sequence[float] | None = None) -> Drawing | None:
    """What --plot draws of a result; None of one that has no plot."""
    match finished:
        case BenchmarkFinished():
            return latency_drawing(finished.result)
        case BatchFinished():
            return batch_drawing(finished.result, predicted_tokens_per_s)
        case _:
            return None


def latency_drawing(result: BenchmarkResult) -> Drawing:
    """Medians with and without the cache, with bars from minimum to maximum."""
    cached = _points(result.rows, lambda r: r.with_cache_s, lambda r: r.with_cache_min_s, lambda r: r.with_cache_max_s)
    plain = _points(
        result.rows, lambda r: r.without_cache_s, lambda r: r.without_cache_min_s, lambda r: r.without_cache_max_s
    )
    return Drawing(
        title=f"Time for a prompt and {plural(result.new_tokens, 'new token')}",
        x_title="prompt length (tokens)",
        y_title="time",
        tick=duration_label,
        lines=(
            Line(label="without the cache", colour=_RED, marker="cross", symbol="x", points=plain),
            Line(label="with the cache", colour=_BLUE, marker="circle", symbol="o", points=cached),
        ),
        caption=_caption(result.model, f"medians of {plural(result.repeats, 'repeat')}", result.machine),
    )


def batch_drawing(result: BatchResult, predicted_tokens_per_s: Sequence[float] | None = None) -> Drawing:
    """Tokens a second of all rows together; a plain line for what the calculator predicts, where that is given."""
    rows = result.rows
    measured = tuple(
        Point(x=row.batch, y=row.tokens_per_s, low=row.batch / row.step_max_s, high=row.batch / row.step_min_s)
        for row in rows
    )
    lines = [Line(label="measured", colour=_BLUE, marker="circle", symbol="o", points=measured)]
    if predicted_tokens_per_s is not None:
        rates = zip(rows, predicted_tokens_per_s, strict=True)
        predicted = tuple(Point(x=row.batch, y=rate, low=rate, high=rate) for row, rate in rates)
        lines.insert(0, Line(label="predicted", colour=_GREY, marker=None, symbol="-", points=predicted))
    return Drawing(
        title="Decoding: tokens a second of all rows together",
        x_title="batch (rows)",
        y_title="tokens/s",
        tick=lambda value: f"{value:,.10g}",
        lines=tuple(lines),
        caption=_caption(result.model, f"medians of {plural(result.repeats, 'round')}", result.machine),
        x_scale="log",
    )


def duration_label(seconds: float) -> str:
    """A round time with its unit and no needless zeros: "0.5 s", "20 ms"."""
    number, unit = duration(seconds).split(" ", 1) if seconds < 99.5 else (f"{seconds:g}", "s")
    return f"{float(number):g} {unit}"


def _points(rows: Sequence[BenchmarkRow], median: _Field, low: _Field, high: _Field) -> tuple[Point, ...]:
    return tuple(Point(x=row.prompt_tokens, y=median(row), low=low(row), high=high(row)) for row in rows)


def _caption(model: str, medians: str, machine: Machine) -> str:
    """Where and how it was measured, in two lines."""
    return (
        f"{model}, {machine.dtype}; {medians}, bars from minimum to maximum\n"
        f"{machine.cpu}, {plural(machine.threads, 'thread')}, torch {machine.torch}"
    )
