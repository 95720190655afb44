"""Evaluation and benchmark results as tables and as text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import TYPE_CHECKING

from calc.commands.tables import KEPT, Column, Table
from calc.units import Quantity, format_bytes_exact, format_count, format_decimal, format_duration_s, format_rate
from engine.measure.kinds.batch import BatchRow, rises
from engine.measure.kinds.benchmark import BenchmarkRow
from engine.measure.kinds.evaluate import CaseResult
from engine.measure.kinds.formats import FormatRow
from engine.records import Machine
from engine.text import plural

if TYPE_CHECKING:
    from tui.live.predict import BatchPrediction

PASSED, FAILED = "✓", "✗"
ERROR_FLOOR = 1e-16
"""Where the logarithmic error bar begins: nothing computed in float64 agrees better."""


def error_text(value: float | None) -> str:
    """An error as it is written; a dash where the check was not run."""
    return "–" if value is None else Quantity(f"{value:.1e}", value)


def worst_error(case: CaseResult) -> float | None:
    """The largest error of a case over all checks that ran."""
    errors = (case.max_abs_error, case.cache_max_abs_error, case.sequential_max_abs_error, case.chunked_max_abs_error)
    return max((e for e in errors if e is not None), default=None)


def error_bar(value: float | None, *, atol: float, width: int) -> str:
    """How far an error reaches towards the tolerance, on a logarithmic scale: ``▐`` is the tolerance itself."""
    limit = max(4, width - 1)
    if value is None:
        return " " * limit + "▐"
    span = log10(atol / ERROR_FLOOR) if atol > ERROR_FLOOR else 1.0
    share = log10(max(value, ERROR_FLOOR) / ERROR_FLOOR) / span
    if value > atol:
        return "━" * limit + "▐▶"
    filled = min(limit, max(0, round(share * limit)))
    return "━" * filled + "┄" * (limit - filled) + "▐"


CHECKS = (
    ("error", "max_abs_error"),
    ("cached", "cache_max_abs_error"),
    ("stepwise", "sequential_max_abs_error"),
    ("chunks", "chunked_max_abs_error"),
)
"""Headings and fields of the errors; evaluate has the first alone."""


BAR = 16
"""Cells of the bar of an error."""


def evaluation_table(cases: Sequence[CaseResult], *, cached: bool, atol: float | None = None) -> Table:
    """A row per case: passed or not, tokens, errors; the worst against the tolerance as a bar where it is known."""
    checks = CHECKS if cached else CHECKS[:1]
    columns = [Column(""), Column("Case", numeric=True), Column("Tokens", numeric=True, priority=1)]
    columns += [Column(name, numeric=True, priority=3 if cached else KEPT) for name, _ in checks]
    columns += [Column("worst", numeric=True)] if cached else []
    columns += [] if atol is None else [Column(f"to {atol:g} (log)", priority=2)]
    return Table(
        title="kv-evaluate" if cached else "evaluate",
        columns=columns,
        rows=[_case_cells(case, checks, cached=cached, atol=atol) for case in cases],
    )


def _case_cells(
    case: CaseResult, checks: Sequence[tuple[str, str]], *, cached: bool, atol: float | None
) -> tuple[str, ...]:
    worst = worst_error(case)
    return (
        f"{PASSED} pass" if case.passed else f"{FAILED} FAIL",
        format_count(case.case),
        format_count(case.prompt_tokens),
        *(error_text(getattr(case, key)) for _, key in checks),
        *((error_text(worst),) if cached else ()),
        *(() if atol is None else (error_bar(worst, atol=atol, width=BAR),)),
    )


def verdict(cases: Sequence[CaseResult], *, atol: float | None, total: int | None = None) -> str:
    """``✓ 5 of 5 cases pass; the worst error is 3.1e-12, 1/32,000 of the tolerance 1e-04``."""
    passed = sum(case.passed for case in cases)
    mark = PASSED if cases and passed == len(cases) else FAILED
    worst = max((e for case in cases if (e := worst_error(case)) is not None), default=None)
    text = f"{mark} {passed} of {total or len(cases)} cases pass"
    if worst is None:
        return text
    text += f"; the worst error is {worst:.1e}"
    return text if atol is None else f"{text}, the tolerance {atol:g}"


def benchmark_table(rows: Sequence[BenchmarkRow], *, new_tokens: int | None = None) -> Table:
    """A row per prompt length: both arms with their spread, the speedup, prefill and time per token."""
    names = {
        "Prompt": KEPT, "● With cache": KEPT, "with: min–max": 3, "● Without": KEPT, "without: min–max": 3,
        "Speedup": KEPT, "TTFT": 5, "TPOT": 5, "p50": 4, "p95": 4, "KV cache": 2,
    }  # fmt: skip
    return Table(
        title="Latency sweep" + (f", {new_tokens} new tokens" if new_tokens else ""),
        columns=[Column(name, numeric=True, priority=priority) for name, priority in names.items()],
        rows=[_benchmark_cells(row) for row in rows],
    )


def spread_text(low: float, high: float) -> str:
    """``20.1–20.3 ms``; both units where they differ."""
    first, last = format_duration_s(low), format_duration_s(high)
    number, *unit = first.split(" ")
    return f"{number}–{last}" if len(unit) == 1 and unit == last.split(" ")[1:] else f"{first}–{last}"


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


def times(ratio: float) -> Quantity:
    """A ratio as it is written: ``2.00x``."""
    return Quantity(f"{ratio:.2f}x", ratio)


def formats_table(rows: Sequence[FormatRow]) -> Table:
    """A row per format, the reference first: memory, speed with its ratio to float32, error of the logits."""
    names = {
        "● Bytes": KEPT, "● TPOT p50": 2, "p95": 1, "● Rate": 6, "Speedup": KEPT, "Same token": 7, "Mean error": 5,
        "Max": 3, "Perplexity": 4,
    }  # fmt: skip
    return Table(
        title="Formats against float32",
        columns=("Weights", "Cache", *(Column(name, numeric=True, priority=p) for name, p in names.items())),
        rows=[_format_cells(row, rows[0]) for row in rows],
    )


SHORT_NAMES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _format_cells(row: FormatRow, first: FormatRow) -> tuple[str, ...]:
    return (
        row.dtype,
        row.cache,
        format_decimal(row.weight_bytes),
        format_duration_s(row.tpot_p50_s),
        format_duration_s(row.tpot_p95_s),
        format_rate(row.tokens_per_s, "tok/s"),
        times(row.tokens_per_s / first.tokens_per_s),
        f"{row.n_same}/{row.n_tokens}",
        Quantity(f"{row.mean_error:.4f}", row.mean_error),
        Quantity(f"{row.max_error:.3f}", row.max_error),
        Quantity(f"{row.perplexity:,.2f}", row.perplexity),
    )


def batch_table(rows: Sequence[BatchRow], predicted: BatchPrediction | None) -> Table:
    """A row per batch: tokens per second of all its rows and their rise over the smallest batch, both predicted too."""

    def column(name: str, group: str = "", priority: int = KEPT, *, numeric: bool = True) -> Column:
        return Column(name, group=group, priority=priority, numeric=numeric)

    columns = (
        column("Batch"), column("● measured", RATE), column("predicted", RATE), column("● / pred.", RATE, 6),
        column("● measured", RISE, 7), column("predicted", RISE, 5), column("bound by", "", 4, numeric=False),
        column("● Step p50", "", 3), column("min–max", "", 2), column("KV cache", "", 1),
    )  # fmt: skip
    gains = rises(rows, [row.tokens_per_s for row in rows]) if rows else []
    cells = [
        (
            format_count(row.batch),
            Quantity(f"{row.tokens_per_s:,.1f}", row.tokens_per_s),
            *_predicted_cells(rows, index, gain, predicted),
            format_duration_s(row.step_p50_s),
            spread_text(row.step_min_s, row.step_max_s),
            format_decimal(row.kv_cache_bytes),
        )
        for index, (row, gain) in enumerate(zip(rows, gains, strict=True))
    ]
    return Table(title="Batch decode", columns=columns, rows=cells)


RATE, RISE = "Tokens/s", "Rise"


def _predicted_cells(
    rows: Sequence[BatchRow], index: int, gain: float, predicted: BatchPrediction | None
) -> tuple[str, ...]:
    """Predicted rate, measured over predicted, both rises, and what bounds the step."""
    if predicted is None:
        return "–", "–", times(gain), "–", "–"
    rate = predicted.tokens_per_s[index]
    share = rows[index].tokens_per_s / rate
    return (
        Quantity(f"{rate:,.1f}", rate),
        Quantity(f"{share:.2f}", share),
        times(gain),
        times(rises(rows, predicted.tokens_per_s)[index]),
        "arithmetic" if predicted.computing[index] else "memory",
    )


def machine_text(machine: Machine) -> str:
    """Where it was measured, in a line."""
    shared = f"{plural(machine.cores, 'core')}, {plural(machine.threads, 'thread')}"
    return (
        f"{machine.cpu}, {shared} · {machine.device} {machine.dtype} · "
        f"torch {machine.torch}, Python {machine.python}, {machine.system}"
    )
