"""Evaluation and benchmark results as tables and as text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log10
from typing import TYPE_CHECKING

from calc.commands.tables import Table
from calc.units import format_bytes_exact, format_count, format_decimal, format_duration_s, format_rate
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
    return "–" if value is None else f"{value:.1e}"


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


def evaluation_table(cases: Sequence[CaseResult], *, cached: bool, atol: float | None = None, bar: int = 16) -> Table:
    """A row a case: passed or not, tokens, errors; the worst against the tolerance as a bar where it is known."""
    checks = CHECKS if cached else CHECKS[:1]
    columns = ("", "Case", "Tokens", *(name for name, _ in checks))
    rows = []
    for case in cases:
        row = [
            f"{PASSED} pass" if case.passed else f"{FAILED} FAIL",
            format_count(case.case),
            format_count(case.prompt_tokens),
            *(error_text(getattr(case, key)) for _, key in checks),
        ]
        if atol is not None:
            row.append(error_bar(worst_error(case), atol=atol, width=bar))
        rows.append(tuple(row))
    if atol is not None:
        columns = (*columns, f"to {atol:g} (log)")
    return Table(
        title="kv-evaluate" if cached else "evaluate",
        columns=columns,
        rows=tuple(rows),
        numeric=frozenset(range(1, 3 + len(checks))),
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
    """A row a prompt length: both arms with their spread, the speedup, prefill and time a token."""
    return Table(
        title="Latency sweep" + (f", {new_tokens} new tokens" if new_tokens else ""),
        columns=(
            "Prompt",
            "● With cache",
            "min–max",
            "● Without",
            "min–max",
            "Speedup",
            "TTFT",
            "TPOT",
            "p50",
            "p95",
            "KV cache",
        ),
        rows=tuple(_benchmark_cells(row) for row in rows),
        numeric=frozenset(range(11)),
    )


def benchmark_variants(rows: Sequence[BenchmarkRow], *, new_tokens: int | None = None) -> tuple[Table, ...]:
    """The whole table; without bytes; without the spread as well; without percentiles; with shorter headings."""
    full = benchmark_table(rows, new_tokens=new_tokens)
    short = kept_columns(full, (0, 1, 3, 5, 6, 7))
    headings = ("Prompt", "● With", "● Without", "Speedup", "TTFT", "TPOT")
    middle = kept_columns(full, (0, 1, 3, 5, 6, 7, 8, 9))
    return full, kept_columns(full, range(10)), middle, short, replace(short, columns=headings)


def evaluation_variants(cases: Sequence[CaseResult], *, cached: bool, atol: float | None) -> tuple[Table, ...]:
    """All checks with a long bar, with a short one, with less about the case; the worst error alone."""
    whole = evaluation_table(cases, cached=cached)
    if atol is None:
        return whole, _worst(cases, whole.title)
    bars = [evaluation_table(cases, cached=cached, atol=atol, bar=width) for width in (32, 12, 10)]
    return *bars[:2], _lean(bars[2]), _worst(cases, whole.title, atol=atol), _worst(cases, whole.title)


def _lean(table: Table) -> Table:
    """Without the word beside the mark, and without the tokens."""
    kept = kept_columns(table, [i for i in range(len(table.columns)) if i != 2])
    return replace(kept, rows=tuple((row[0][:1], *row[1:]) for row in kept.rows))


def _worst(cases: Sequence[CaseResult], title: str, *, atol: float | None = None) -> Table:
    rows = [
        (
            PASSED if case.passed else FAILED,
            format_count(case.case),
            format_count(case.prompt_tokens),
            error_text(worst_error(case)),
            *((error_bar(worst_error(case), atol=atol, width=14),) if atol is not None else ()),
        )
        for case in cases
    ]
    scale = () if atol is None else (f"to {atol:g} (log)",)
    columns = ("", "Case", "Tokens", "worst error", *scale)
    return Table(title=title, columns=columns, rows=tuple(rows), numeric=frozenset({1, 2, 3}))


def kept_columns(table: Table, columns: Sequence[int]) -> Table:
    """`table` with some of its columns."""
    return Table(
        title=table.title,
        columns=tuple(table.columns[i] for i in columns),
        rows=tuple(tuple(row[i] for i in columns) for row in table.rows),
        numeric=frozenset(k for k, i in enumerate(columns) if i in table.numeric),
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
        f"{row.speedup:.2f}x",
        format_duration_s(row.prefill_s),
        *("–" if s is None else format_duration_s(s) for s in (row.tpot_s, row.tpot_p50_s, row.tpot_p95_s)),
        format_bytes_exact(row.kv_cache_bytes),
    )


def formats_table(rows: Sequence[FormatRow]) -> Table:
    """A row a format, the reference first: memory, speed with its ratio to float32, error of the logits."""
    columns = (
        "Weights", "Cache", "● Bytes", "● TPOT p50", "p95", "● Rate", "Speedup", "Same token", "Mean error", "Max",
        "Perplexity",
    )  # fmt: skip
    first = rows[0] if rows else None
    cells = tuple(_format_cells(row, first) for row in rows if first is not None)
    return Table(title="Formats against float32", columns=columns, rows=cells, numeric=frozenset(range(2, 11)))


def formats_variants(rows: Sequence[FormatRow]) -> tuple[Table, ...]:
    """The whole table; without tails and perplexity; the essentials; the same with short names."""
    full = formats_table(rows)
    lean = kept_columns(full, (0, 1, 2, 5, 6, 7, 8))
    least = replace(
        kept_columns(full, (0, 2, 5, 6, 7, 8)),
        columns=("Weights", "Bytes", "Rate", "", "Same", "Error"),
        rows=tuple((_short_name(row), *cells[2:]) for row, cells in zip(rows, lean.rows, strict=True)),
    )
    return full, kept_columns(full, (0, 1, 2, 3, 5, 6, 7, 8, 10)), lean, least


SHORT_NAMES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _short_name(row: FormatRow) -> str:
    """``bf16``, or ``fp32/int8`` with another cache, as the command line's --formats writes it."""
    name = SHORT_NAMES.get(row.dtype, row.dtype)
    return name if row.cache == "full" else f"{name}/{row.cache}"


def _format_cells(row: FormatRow, first: FormatRow) -> tuple[str, ...]:
    return (
        row.dtype,
        row.cache,
        format_decimal(row.weight_bytes),
        format_duration_s(row.tpot_p50_s),
        format_duration_s(row.tpot_p95_s),
        format_rate(row.tokens_per_s, "tok/s"),
        f"{row.tokens_per_s / first.tokens_per_s:.2f}x",
        f"{row.n_same}/{row.n_tokens}",
        f"{row.mean_error:.4f}",
        f"{row.max_error:.3f}",
        f"{row.perplexity:,.2f}",
    )


def batch_table(rows: Sequence[BatchRow], predicted: BatchPrediction | None) -> Table:
    """A row a batch: tokens a second of all its rows and their rise over the smallest batch, measured and predicted."""
    columns = (
        "Batch", "● Tokens/s", "predicted", "● / pred.", "● Rise", "predicted", "bound by", "● Step p50", "min–max",
        "KV cache",
    )  # fmt: skip
    gains = rises(rows, [row.tokens_per_s for row in rows]) if rows else []
    cells = tuple(
        (
            format_count(row.batch),
            f"{row.tokens_per_s:,.1f}",
            *_predicted_cells(rows, index, gain, predicted),
            format_duration_s(row.step_p50_s),
            spread_text(row.step_min_s, row.step_max_s),
            format_decimal(row.kv_cache_bytes),
        )
        for index, (row, gain) in enumerate(zip(rows, gains, strict=True))
    )
    return Table(title="Batch decode", columns=columns, rows=cells, numeric=frozenset(set(range(len(columns))) - {6}))


def _predicted_cells(
    rows: Sequence[BatchRow], index: int, gain: float, predicted: BatchPrediction | None
) -> tuple[str, ...]:
    """Predicted rate, measured over predicted, both rises, and what bounds the step."""
    if predicted is None:
        return "–", "–", f"{gain:.2f}x", "–", "–"
    rate = predicted.tokens_per_s[index]
    return (
        f"{rate:,.1f}",
        f"{rows[index].tokens_per_s / rate:.2f}",
        f"{gain:.2f}x",
        f"{rises(rows, predicted.tokens_per_s)[index]:.2f}x",
        "arithmetic" if predicted.computing[index] else "memory",
    )


def batch_variants(rows: Sequence[BatchRow], predicted: BatchPrediction | None) -> tuple[Table, ...]:
    """The whole table; without bytes and spread; both rates and rises alone; with shorter headings."""
    full = batch_table(rows, predicted)
    least = kept_columns(full, range(6))
    short = replace(least, columns=("Batch", "● Tok/s", "pred.", "● / p.", "● Rise", "pred."))
    return full, kept_columns(full, range(9)), kept_columns(full, range(8)), kept_columns(full, range(7)), least, short


def machine_text(machine: Machine) -> str:
    """Where it was measured, in a line."""
    shared = f"{plural(machine.cores, 'core')}, {plural(machine.threads, 'thread')}"
    return (
        f"{machine.cpu}, {shared} · {machine.device} {machine.dtype} · "
        f"torch {machine.torch}, Python {machine.python}, {machine.system}"
    )
