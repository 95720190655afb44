"""Problem 2: what the engine measured, as tables and sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calc.units import format_bytes, format_count, format_duration_s
from engine.measure.kinds.benchmark import BenchmarkResult, BenchmarkRow
from engine.measure.kinds.evaluate import CaseResult, EvaluationResult
from engine.measure.timing import timing
from engine.records import Machine
from tui.report.model import Block, Figure, Grid, Heading, Text, Verbatim, cells, paragraph, plain_items
from tui.views.plots import benchmark_chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One generated continuation: raw timestamps, the cache that was allocated and the bytes calc predicts."""

    model: str
    prompt: str
    text: str
    n_prompt_tokens: int
    start_ns: int
    token_times_ns: tuple[int, ...]
    kv_cache_bytes: int
    predicted_kv_cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What the engine measured. None: that part was not run."""

    evaluate: EvaluationResult | None = None
    kv_evaluate: EvaluationResult | None = None
    benchmark: BenchmarkResult | None = None
    sample: Sample | None = None

    @property
    def passed(self) -> bool | None:
        """Whether every evaluation that was run passed; None if none was."""
        results = [result.passed for result in (self.evaluate, self.kv_evaluate) if result is not None]
        return all(results) if results else None


LEFT_OUT = (
    "Measurements were left out of this document: it holds calculated numbers only. "
    "Written again without --no-measure it runs the evaluations, a sample and the latency sweep."
)


def measured_part(measured: Measurements | None) -> list[Block]:
    """Evaluation, sample and latency sweep, or a sentence that says they were left out."""
    head: list[Block] = [Heading(1, "Problem 2: a transformer with a KV cache, measured")]
    if measured is None or measured == Measurements():
        return [*head, paragraph(LEFT_OUT)]
    return [
        *head,
        *_evaluation(measured.evaluate),
        *_evaluation(measured.kv_evaluate),
        *_sample(measured.sample),
        *_benchmark(measured.benchmark),
    ]


# Evaluation


def _error(value: float | None) -> str:
    return "not run" if value is None else f"{value:.2e}"


def _evaluation(result: EvaluationResult | None) -> list[Block]:
    if result is None:
        return []
    cached = result.command == "kv-evaluate"
    title = "Evaluation with the KV cache (kv-evaluate)" if cached else "Evaluation (evaluate)"
    return [
        Heading(2, title),
        paragraph(_verdict(result)),
        Grid(
            title=f"Largest |logit - expected| by case, tolerance {result.atol:g}",
            columns=cells("Case", "Prompt tokens", "Without cache", *(_CACHED if cached else ()), "Result"),
            rows=tuple(_case(case, cached=cached) for case in result.cases),
            numeric=frozenset(range(6 if cached else 3)),
        ),
    ]


_CACHED = ("With cache", "Token by token", "In chunks")


def case_errors(case: CaseResult) -> tuple[float | None, ...]:
    """The errors of one case: without the cache, with it, token by token, in chunks."""
    return (
        case.max_abs_error,
        case.cache_max_abs_error,
        case.sequential_max_abs_error,
        case.chunked_max_abs_error,
    )


def _case(case: CaseResult, *, cached: bool) -> tuple[Text, ...]:
    errors = case_errors(case)[: 4 if cached else 1]
    shown = "passed" if case.passed else "FAILED"
    return cells(str(case.case), format_count(case.prompt_tokens), *map(_error, errors), shown)


def _verdict(result: EvaluationResult) -> str:
    passed = sum(case.passed for case in result.cases)
    errors = [error for case in result.cases for error in case_errors(case) if error is not None]
    worst = f"; the largest error is {max(errors):.2e}" if errors else ""
    held = "every case passes" if result.passed else f"{passed} of {len(result.cases)} cases pass"
    setting = f"Weights: {_weights(result.weights)}; arithmetic in {result.dtype}"
    return f"{setting}: {held} at a tolerance of {result.atol:g}{worst}."


def _weights(path: str) -> str:
    """A weight file by its path; the one that kvscope ships by what it is, wherever it is installed."""
    from assets import path as asset_path

    return "the bundled model" if path in ("bundled", str(asset_path("model"))) else path


# Sample


def _sample(sample: Sample | None) -> list[Block]:
    if sample is None:
        return []
    rates = timing(sample.start_ns, sample.token_times_ns)
    return [
        Heading(2, "A sample"),
        paragraph(f"{_named(sample.model)}, prompt “{sample.prompt}”, greedy, with the cache, continues:"),
        Verbatim(sample.text),
        Grid(
            title=f"{rates.n_tokens} tokens after a prompt of {sample.n_prompt_tokens}",
            columns=cells("Quantity", "Value"),
            rows=(
                cells("Time to first token (prefill)", _duration(rates.ttft_s)),
                cells("Time per output token after the first", _duration(rates.tpot_s)),
                cells("KV cache allocated by the engine", format_bytes(sample.kv_cache_bytes)),
                cells("KV cache predicted by the formula of (a)", format_bytes(sample.predicted_kv_cache_bytes)),
                cells("Measured over predicted", _over(sample.kv_cache_bytes, sample.predicted_kv_cache_bytes)),
            ),
            numeric=frozenset({1}),
        ),
    ]


def _named(model: str) -> str:
    return "The bundled model" if model == "bundled" else model


def _duration(seconds: float | None) -> str:
    return "too few tokens" if seconds is None else format_duration_s(seconds)


def _over(measured: int, predicted: int) -> str:
    return f"{measured / predicted:.4f}" if predicted else "nothing predicted"


# Latency sweep


def _benchmark(result: BenchmarkResult | None) -> list[Block]:
    if result is None or not result.rows:
        return []
    caption = (
        f"Time for {result.new_tokens} new tokens against prompt length, both axes logarithmic; "
        f"medians of {result.repeats} runs."
    )
    return [
        Heading(2, "Latency with and without the cache"),
        paragraph(
            f"{_named(result.model)}: {result.new_tokens} new tokens after prompts of different lengths, the same "
            f"tokens in both arms, {result.warmup} warm-up and {result.repeats} timed runs each. Without the cache "
            "every token recomputes the whole sequence."
        ),
        sweep_grid(result.rows),
        Figure(chart=benchmark_chart(result.rows, new_tokens=result.new_tokens), caption=(caption,)),
        plain_items([*sweep_sentences(result), *result.notes]),
        machine_grid(result.machine),
    ]


def prefill_share(row: BenchmarkRow) -> float:
    """The part of the time with the cache that is prefill."""
    return row.prefill_s / row.with_cache_s if row.with_cache_s else 0.0


def _spread(middle: float, low: float, high: float) -> str:
    return f"{format_duration_s(middle)} ({format_duration_s(low)} to {format_duration_s(high)})"


def sweep_grid(rows: Sequence[BenchmarkRow]) -> Grid:
    """One row per prompt length: medians with their ranges, what is prefill and what is per token."""
    return Grid(
        title="Latency by prompt length: median (least to most)",
        columns=cells("Prompt", "With cache", "Without cache", "Speed-up", "Prefill", "Share", "Per token", "KV cache"),
        rows=tuple(
            cells(
                format_count(row.prompt_tokens),
                _spread(row.with_cache_s, row.with_cache_min_s, row.with_cache_max_s),
                _spread(row.without_cache_s, row.without_cache_min_s, row.without_cache_max_s),
                f"{row.speedup:.2f}",
                format_duration_s(row.prefill_s),
                f"{prefill_share(row):.0%}",
                _duration(row.tpot_s),
                format_count(row.kv_cache_bytes) + " B",
            )
            for row in rows
        ),
        numeric=frozenset(range(8)),
    )


def sweep_sentences(result: BenchmarkResult) -> list[str]:
    """What the sweep shows: growth of both arms, the gain at the ends, the part that is prefill."""
    first, last = result.rows[0], result.rows[-1]
    sentences = [_gain(first, last)]
    if last.prompt_tokens > first.prompt_tokens:
        sentences.append(
            f"From {first.prompt_tokens:,} to {last.prompt_tokens:,} prompt tokens the time grows "
            f"{last.with_cache_s / first.with_cache_s:.1f} times with the cache and "
            f"{last.without_cache_s / first.without_cache_s:.1f} times without."
        )
    if last is first:
        return [*sentences, f"{prefill_share(last):.0%} of the time with the cache is prefill."]
    sentences.append(
        f"With the cache {prefill_share(first):.0%} of the time is prefill at {first.prompt_tokens:,} tokens and "
        f"{prefill_share(last):.0%} at {last.prompt_tokens:,}."
    )
    if first.tpot_s and last.tpot_s:
        longer = ", since every token reads the whole cache" if last.tpot_s > 1.05 * first.tpot_s else ""
        sentences.append(
            f"A token after the first takes {format_duration_s(first.tpot_s)} at {first.prompt_tokens:,} tokens and "
            f"{format_duration_s(last.tpot_s)} at {last.prompt_tokens:,}{longer}."
        )
    return sentences


def _gain(first: BenchmarkRow, last: BenchmarkRow) -> str:
    def words(row: BenchmarkRow) -> str:
        if row.speedup >= 1:
            return f"{row.speedup:.1f} times faster with the cache at {row.prompt_tokens:,} tokens"
        return f"{1 / row.speedup:.1f} times slower with the cache at {row.prompt_tokens:,} tokens"

    ends = words(last) if last is first else f"{words(first)}, {words(last)}"
    return f"Generation is {ends}."


def machine_grid(machine: Machine) -> Grid:
    """Where the sweep was measured."""
    return Grid(
        title="The machine",
        columns=cells("Fact", "Value"),
        rows=(
            cells("Processor", machine.cpu),
            cells("Cores, threads used", f"{machine.cores}, {machine.threads}"),
            cells("Device, arithmetic", f"{machine.device}, {machine.dtype}"),
            cells("PyTorch, Python", f"{machine.torch}, {machine.python}"),
            cells("System", machine.system),
        ),
    )
