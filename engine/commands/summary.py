"""Results as plain text for people: aligned tables, no colours. Pure, without torch."""

from collections.abc import Sequence

from engine.measure.timing import timing
from engine.process.events import (
    BatchResult,
    BatchRow,
    BenchmarkResult,
    BenchmarkRow,
    CaseResult,
    EvaluationResult,
    FormatRow,
    FormatsResult,
    GenerationFinished,
    Machine,
)


def evaluation_text(result: EvaluationResult) -> str:
    """One line a case, the verdict last."""
    cached = result.command == "kv-evaluate"
    header = ["case", "tokens", "result", "max error"]
    if cached:
        header += ["with cache", "one by one", "in chunks"]
    rows = [_case_cells(case, cached=cached) for case in result.cases]
    n_passed = sum(case.passed for case in result.cases)
    verdict = "passed" if result.passed else "FAILED"
    return "\n".join(
        [
            f"{result.command} {result.weights}",
            *table(header, rows),
            f"{verdict}: {n_passed} of {len(rows)} cases within {result.atol:g} in {result.dtype}",
        ]
    )


def benchmark_text(result: BenchmarkResult) -> str:
    """One line a prompt length, then the machine and the notes."""
    header = [
        "prompt",
        "with cache",
        "min..max",
        "without",
        "min..max",
        "speedup",
        "prefill",
        "per token",
        "p95",
        "KV cache",
    ]
    repeats = f"median of {plural(result.repeats, 'repeat')} after {result.warmup} to warm up"
    return "\n".join(
        [
            f"benchmark {result.model}: the prompt and {plural(result.new_tokens, 'new token')}, {repeats}",
            *table(header, [_row_cells(row) for row in result.rows]),
            _machine_line(result.machine),
            *result.notes,
        ]
    )


def batch_text(result: BatchResult) -> str:
    """One line a batch, then the prompt that arithmetic binds, the machine and the notes."""
    header = ["batch", "tokens/s", "rise", "step", "min..max", "KV cache"]
    gains = rises(result.rows, [row.tokens_per_s for row in result.rows])
    rows = [_batch_cells(row, rise) for row, rise in zip(result.rows, gains, strict=True)]
    return "\n".join(
        [
            batch_title(result),
            *table(header, rows),
            f"a prompt of {plural(result.prefill_tokens, 'token')} takes {duration(result.prefill_s)}",
            _machine_line(result.machine),
            *result.notes,
        ]
    )


def batch_title(result: BatchResult) -> str:
    """What was measured, in a line."""
    rows = "rows of up to" if result.ragged else "rows of"
    repeats = f"medians of {plural(result.repeats, 'round')} after 1 to warm up"
    return (
        f"batch {result.model}: {plural(result.new_tokens, 'step')} after {rows} {result.context:,} tokens, {repeats}"
    )


def rises(rows: Sequence[BatchRow], tokens_per_s: Sequence[float]) -> list[float]:
    """Each of `tokens_per_s`, one a row, over that of the smallest batch."""
    first = min(range(len(rows)), key=lambda index: rows[index].batch)
    return [rate / tokens_per_s[first] for rate in tokens_per_s]


def formats_text(result: FormatsResult) -> str:
    """One line a format, the reference first, then the machine and the notes."""
    header = [
        "weights",
        "cache",
        "bytes",
        "per token",
        "p95",
        "tokens/s",
        "same token",
        "mean error",
        "max",
        "perplexity",
    ]
    return "\n".join(
        [
            f"formats of {result.model} against float32, on {plural(result.rows[0].n_tokens, 'token')} of text",
            *table(header, [_format_cells(row) for row in result.rows]),
            _machine_line(result.machine),
            *result.notes,
        ]
    )


def generation_text(finished: GenerationFinished) -> str:
    """The rates of a run in one line."""
    rates = timing(finished.start_ns, finished.token_times_ns)
    parts = [f"{plural(rates.n_tokens, 'token')} ({finished.reason})"]
    if rates.ttft_s is not None:
        parts.append(f"first after {duration(rates.ttft_s)}")
    if rates.tpot_s is not None:
        parts.append(f"then {duration(rates.tpot_s)} each")
    if rates.tokens_per_s is not None:
        parts.append(f"{rates.tokens_per_s:,.1f} tokens/s")
    parts.append(f"KV cache {finished.kv_cache_bytes:,} B" if finished.kv_cache_bytes else "no KV cache")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the unit that leaves three digits to read: "78.0 us", "5.41 ms", "1.20 s", "2 min 5 s".

    >>> [duration(s) for s in (0, 7.8e-05, 0.00541, 0.2208, 1.2, 125)]
    ['0 s', '78.0 us', '5.41 ms', '221 ms', '1.20 s', '2 min 5 s']
    """
    if seconds == 0:
        return "0 s"
    if seconds >= 99.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    for unit, each_s in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * each_s:
            return f"{_three_digits(seconds / each_s)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


def size(n_bytes: int) -> str:
    """Bytes in decimal units.

    >>> size(1_440_000), size(270_000_000), size(16_060_000_000)
    ('1.4 MB', '270 MB', '16.1 GB')
    """
    if n_bytes >= 10**10:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:,.{0 if n_bytes >= 10**7 else 1}f} MB"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "thread"), plural(1200, "thread")
    ('1 thread', '1,200 threads')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of right-aligned columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (header, *rows)
    ]


def _case_cells(case: CaseResult, *, cached: bool) -> list[str]:
    errors = [case.max_abs_error]
    if cached:
        errors += [case.cache_max_abs_error, case.sequential_max_abs_error, case.chunked_max_abs_error]
    shown = ["-" if error is None else f"{error:.2e}" for error in errors]
    return [str(case.case), f"{case.prompt_tokens:,}", "passed" if case.passed else "FAILED", *shown]


def _row_cells(row: BenchmarkRow) -> list[str]:
    return [
        f"{row.prompt_tokens:,}",
        duration(row.with_cache_s),
        f"{duration(row.with_cache_min_s)}..{duration(row.with_cache_max_s)}",
        duration(row.without_cache_s),
        f"{duration(row.without_cache_min_s)}..{duration(row.without_cache_max_s)}",
        f"{row.speedup:.2f}x",
        duration(row.prefill_s),
        "-" if row.tpot_s is None else duration(row.tpot_s),
        "-" if row.tpot_p95_s is None else duration(row.tpot_p95_s),
        f"{row.kv_cache_bytes:,} B",
    ]


def _batch_cells(row: BatchRow, rise: float) -> list[str]:
    return [
        f"{row.batch:,}",
        f"{row.tokens_per_s:,.1f}",
        f"{rise:.2f}x",
        duration(row.step_p50_s),
        f"{duration(row.step_min_s)}..{duration(row.step_max_s)}",
        f"{row.kv_cache_bytes:,} B",
    ]


def _format_cells(row: FormatRow) -> list[str]:
    return [
        row.dtype,
        row.cache,
        f"{row.weight_bytes:,} B",
        duration(row.tpot_p50_s),
        duration(row.tpot_p95_s),
        f"{row.tokens_per_s:,.1f}",
        f"{row.n_same} of {row.n_tokens}",
        f"{row.mean_error:.4f}",
        f"{row.max_error:.3f}",
        f"{row.perplexity:,.2f}",
    ]


def _machine_line(machine: Machine) -> str:
    return (
        f"{machine.cpu}, {plural(machine.cores, 'core')}, {plural(machine.threads, 'thread')}, {machine.dtype}, "
        f"torch {machine.torch}, Python {machine.python}, {machine.system}"
    )


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
