"""benchmark as the app shows it: latency with and without the cache, by prompt length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.tables import KEPT, Column, Table
from calc.units import Quantity, format_bytes_exact, format_count, format_duration_s
from engine.measure.kinds import benchmark
from engine.measure.kinds.benchmark import Benchmark, BenchmarkRow
from engine.measure.measurement import Document
from engine.measure.registry import MEASUREMENTS
from engine.records import ModelInfo
from engine.text import plural
from tui.charts.chart import Chart
from tui.charts.plots import benchmark_chart, benchmark_figure, by_length
from tui.form.sampling import COMPILED_CHOICES, COMPILED_HELP, read_lengths, read_new_tokens
from tui.live.presentation import DialField, Presentation, TextField
from tui.live.result_text import medians, spread_text, times
from tui.live.sweep_times import SweepPrediction, predicted_sweep, row_keys

if TYPE_CHECKING:
    from tui.live.measurement import Job

FORM = (
    (TextField(name="lengths", label="prompts", read=read_lengths, text="10,50,100,500,1000"),),
    (
        TextField(name="new_tokens", label="new tokens", read=read_new_tokens, text="40", width=6),
        DialField(name="compile", label="compiled", choices=COMPILED_CHOICES, value="off", help=COMPILED_HELP),
    ),
)


def predict(job: Job, model: ModelInfo) -> SweepPrediction | None:
    """The prediction from the model's own operators for the rows so far; None if they were not timed."""
    source = job.latest if job.result is None else job.result
    own = getattr(source, "own", None)
    new_tokens = _new_tokens(job)
    return None if own is None or new_tokens is None else predicted_sweep(job.rows, own, new_tokens=new_tokens)


def table(job: Job) -> Table:
    """A row per prompt length, measured and predicted."""
    return benchmark_table(job.rows, _predicted(job), new_tokens=_new_tokens(job))


def chart(job: Job | None) -> Chart:
    """Both medians against prompt length, and the predictions."""
    if job is None:
        return benchmark_chart(())
    return benchmark_chart(job.rows, _predicted(job), new_tokens=_new_tokens(job))


def document(job: Job) -> Document:
    """The JSON document, with the predictions for each row."""
    predicted = _predicted(job)
    if predicted is None:
        return benchmark.document(job.result)
    keys = [row_keys(row, predicted.lengths[row.prompt_tokens]) for row in job.result.rows]
    return benchmark.document(job.result, predicted=keys)


def _predicted(job: Job) -> SweepPrediction | None:
    return job.predicted if isinstance(job.predicted, SweepPrediction) else None


def _new_tokens(job: Job) -> int | None:
    return job.request.new_tokens if isinstance(job.request, Benchmark) else None


def benchmark_table(
    rows: Sequence[BenchmarkRow], predicted: SweepPrediction | None = None, *, new_tokens: int | None = None
) -> Table:
    """A row per prompt length: times with and without the cache and their spread, the speedup, prefill and time per
    token.

    If there are predictions, each time has its prediction and the ratio measured / predicted, and the row says why they
    differ.
    """
    arms = ("with", "without") if predicted is not None else ()
    added = {arm: {f"{arm}: predicted": 7, f"{arm}: ● / pred.": 6} for arm in arms}
    names = {
        "Prompt": KEPT, "● With cache": KEPT, **added.get("with", {}), "with: min–max": 3, "● Without": KEPT,
        **added.get("without", {}), "without: min–max": 3, "Speedup": KEPT, "TTFT": 5, "TPOT": 5, "p50": 4,
        "p95": 4, "KV cache": 2,
    }  # fmt: skip
    said = predicted is not None and any(times.why for times in predicted.lengths.values())
    columns = [Column(name, numeric=True, priority=priority) for name, priority in names.items()]
    return Table(
        title="Latency sweep" + (f", {plural(new_tokens, 'new token')}" if new_tokens else ""),
        columns=[*columns, *([Column("why they differ", priority=5)] if said else [])],
        rows=[_benchmark_cells(row, predicted, said=said) for row in by_length(rows)],
    )


def _benchmark_cells(row: BenchmarkRow, predicted: SweepPrediction | None, *, said: bool) -> tuple[str, ...]:
    expected = None if predicted is None else predicted.lengths[row.prompt_tokens]
    return (
        format_count(row.prompt_tokens),
        format_duration_s(row.with_cache_s),
        *(() if expected is None else _expected_cells(row.with_cache_s, expected.with_cache_s)),
        spread_text(row.with_cache_min_s, row.with_cache_max_s),
        format_duration_s(row.without_cache_s),
        *(() if expected is None else _expected_cells(row.without_cache_s, expected.without_cache_s)),
        spread_text(row.without_cache_min_s, row.without_cache_max_s),
        times(row.speedup),
        format_duration_s(row.prefill_s),
        *("–" if s is None else format_duration_s(s) for s in (row.tpot_s, row.tpot_p50_s, row.tpot_p95_s)),
        format_bytes_exact(row.kv_cache_bytes),
        *((expected.why,) if said and expected is not None else ()),
    )


def _expected_cells(measured_s: float, predicted_s: float | None) -> tuple[str, str]:
    """The predicted time, and measured / predicted."""
    if predicted_s is None:
        return "–", "–"
    return format_duration_s(predicted_s), Quantity(f"{measured_s / predicted_s:.2f}", measured_s / predicted_s)


PRESENTATIONS = (
    Presentation(
        measurement=MEASUREMENTS["benchmark"],
        title="Measure the latency sweep",
        hint="Latency by prompt length, with and without the cache",
        key="s",
        button="sweep",
        help="measures prompts of growing length with (●) and without (×) the cache: medians of the repeats, with the "
        "same tokens both ways. Predictions from the model's own operators, timed in the same rounds, are beside "
        "them (·), with the reason if they differ.",
        form=FORM,
        table=table,
        chart=chart,
        predict=predict,
        document=document,
        figure=lambda job: benchmark_figure(job.result, _predicted(job)),
        outcome=lambda job: f"✓ {plural(len(job.rows), 'length')} measured, {medians(job.result.repeats)}",
    ),
)
