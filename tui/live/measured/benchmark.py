"""benchmark as the app shows it: latency with and without the cache, by prompt length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.tables import KEPT, Column, Table
from calc.units import format_bytes_exact, format_count, format_duration_s
from engine.measure.kinds.benchmark import Benchmark, BenchmarkRow
from engine.measure.registry import MEASUREMENTS
from tui.form.sampling import COMPILED_CHOICES, COMPILED_HELP, read_lengths, read_new_tokens
from tui.live.presentation import DialField, Presentation, TextField
from tui.live.result_text import medians, spread_text, times
from tui.views.chart import Chart
from tui.views.plots import benchmark_chart, benchmark_figure, by_length

if TYPE_CHECKING:
    from tui.live.measurement import Job

FORM = (
    (TextField(name="lengths", label="prompts", read=read_lengths, text="10,50,100,500,1000"),),
    (
        TextField(name="new_tokens", label="new tokens", read=read_new_tokens, text="40", width=6),
        DialField(name="compile", label="compiled", choices=COMPILED_CHOICES, value="off", help=COMPILED_HELP),
    ),
)


def table(job: Job) -> Table:
    """A row per prompt length."""
    return benchmark_table(job.rows, new_tokens=_new_tokens(job))


def chart(job: Job | None) -> Chart:
    """Both medians against prompt length."""
    return benchmark_chart(()) if job is None else benchmark_chart(job.rows, new_tokens=_new_tokens(job))


def _new_tokens(job: Job) -> int | None:
    return job.request.new_tokens if isinstance(job.request, Benchmark) else None


def benchmark_table(rows: Sequence[BenchmarkRow], *, new_tokens: int | None = None) -> Table:
    """A row per prompt length: both arms with their spread, the speedup, prefill and time per token."""
    names = {
        "Prompt": KEPT, "● With cache": KEPT, "with: min–max": 3, "● Without": KEPT, "without: min–max": 3,
        "Speedup": KEPT, "TTFT": 5, "TPOT": 5, "p50": 4, "p95": 4, "KV cache": 2,
    }  # fmt: skip
    return Table(
        title="Latency sweep" + (f", {new_tokens} new tokens" if new_tokens else ""),
        columns=[Column(name, numeric=True, priority=priority) for name, priority in names.items()],
        rows=[_benchmark_cells(row) for row in by_length(rows)],
    )


def _benchmark_cells(row: BenchmarkRow) -> tuple[str, ...]:
    return (
        format_count(row.prompt_tokens),
        format_duration_s(row.with_cache_s),
        spread_text(row.with_cache_min_s, row.with_cache_max_s),
        format_duration_s(row.without_cache_s),
        spread_text(row.without_cache_min_s, row.without_cache_max_s),
        times(row.speedup),
        format_duration_s(row.prefill_s),
        *("–" if s is None else format_duration_s(s) for s in (row.tpot_s, row.tpot_p50_s, row.tpot_p95_s)),
        format_bytes_exact(row.kv_cache_bytes),
    )


PRESENTATIONS = (
    Presentation(
        measurement=MEASUREMENTS["benchmark"],
        title="Measure the latency sweep",
        hint="Latency by prompt length, with and without the cache",
        key="s",
        button="sweep",
        help="measures prompts of growing length with (●) and without (×) the cache: medians of the repeats, with the "
        "same tokens both ways.",
        form=FORM,
        table=table,
        chart=chart,
        figure=lambda job: benchmark_figure(job.result),
        outcome=lambda job: f"✓ {len(job.rows)} lengths measured, {medians(job.result.repeats)}",
    ),
)
