"""Problem 2: what the engine measured, as tables and sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from calc.units import format_bytes, format_count, format_duration_s
from engine.measure.kinds.benchmark import BenchmarkResult
from engine.measure.kinds.evaluate import EvaluationResult
from engine.measure.timing import timing
from engine.records import ModelInfo
from tui.charts.chart import Axis, Chart, Level, Point, Series
from tui.live.measured.evaluate import error_text, evaluation_table, worst_error
from tui.report.latency_part import latency_part
from tui.report.model import Block, Figure, Grid, Heading, Verbatim, cells, grid_of, paragraph, plain_items
from tui.report.model_part import model_name, model_part


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One generated continuation: raw timestamps, the allocated cache and the bytes that calc predicts."""

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
    """The engine's measurements. None: that part was not run."""

    evaluate: EvaluationResult | None = None
    kv_evaluate: EvaluationResult | None = None
    benchmark: BenchmarkResult | None = None
    sample: Sample | None = None
    model: ModelInfo | None = None
    """The model of the sweep and the sample."""

    @property
    def passed(self) -> bool | None:
        """Whether every evaluation passed; None if none was run."""
        results = [result.passed for result in (self.evaluate, self.kv_evaluate) if result is not None]
        return all(results) if results else None


LEFT_OUT = (
    "This document has calculated numbers only, no measurements. Without --no-measure, the report runs the "
    "evaluations, a sample and the latency sweep."
)


def measured_part(measured: Measurements | None) -> list[Block]:
    """The model, both evaluations, the latency sweep and a sample, or a sentence that they were left out."""
    head: list[Block] = [Heading(1, "Problem 2: a transformer with a KV cache, measured")]
    if measured is None or measured == Measurements():
        return [*head, paragraph(LEFT_OUT)]
    return [
        *head,
        *model_part(measured.model),
        *_evaluation(measured.evaluate),
        *_evaluation(measured.kv_evaluate),
        *latency_part(measured.benchmark, measured.model),
        *_sample(measured.sample),
    ]


# Evaluation


def _evaluation(result: EvaluationResult | None) -> list[Block]:
    if result is None:
        return []
    cached = result.command == "kv-evaluate"
    title = "(c) Evaluation with the KV cache (kv-evaluate)" if cached else "(b) Evaluation (evaluate)"
    return [
        Heading(2, title),
        paragraph(_verdict(result)),
        grid_of(
            evaluation_table(result.cases, cached=cached),
            title=f"Largest |logit - expected| by case, tolerance {result.atol:g}",
        ),
        *(_differences(result) if cached else ()),
        plain_items(result.notes),
    ]


def _differences(result: EvaluationResult) -> list[Block]:
    """Cached against uncached logits: the three ways through the cache, compared with the error against the expected
    logits."""
    rows = tuple(
        cells(
            format_count(case.case),
            format_count(case.prompt_tokens),
            error_text(case.cache_max_abs_difference),
            error_text(case.sequential_max_abs_difference),
            error_text(case.chunked_max_abs_difference),
        )
        for case in result.cases
    )
    caption = (
        "Difference of cached and uncached logits, and error against the expected logits, both axes logarithmic; a "
        "difference of exactly zero is not drawn."
    )
    return [
        Grid(
            title="Cached against uncached: largest |cached - uncached| by case",
            columns=cells("Case", "Tokens", "Whole prompt at once", "Token by token", "In chunks"),
            rows=rows,
            numeric=frozenset(range(5)),
        ),
        Figure(chart=difference_chart(result), caption=(caption,)),
    ]


def difference_chart(result: EvaluationResult) -> Chart:
    """Error against the expected logits, and cached against uncached, by prompt length."""
    cases = sorted(result.cases, key=lambda case: case.prompt_tokens)

    def points(name: str) -> tuple[Point, ...]:
        return tuple((float(case.prompt_tokens), value) for case in cases if (value := getattr(case, name)))

    return Chart(
        title="Largest difference of the logits",
        x=Axis(title="prompt, tokens", log=True, tick=format_count),
        y=Axis(title="|difference|", log=True, tick=lambda value: f"{value:.0e}"),
        series=(
            Series(label="uncached - expected", symbol="×", colour=1, points=points("max_abs_error")),
            Series(label="cached - uncached", symbol="●", colour=0, points=points("max_abs_difference")),
        ),
        levels=tuple(_levels(result)),
        empty="every difference is exactly zero",
    )


def _levels(result: EvaluationResult) -> Iterator[Level]:
    """The tolerance, and half a unit in the last place of the expected logits."""
    if result.atol:
        yield Level(label=f"tolerance {result.atol:g}", value=result.atol)
    if result.expected_decimals is not None:
        rounding = 0.5 / 10**result.expected_decimals
        yield Level(label=f"rounding of the file {rounding:.0e}", value=rounding, symbol="┄")


def _verdict(result: EvaluationResult) -> str:
    passed = sum(case.passed for case in result.cases)
    worst = max((error for case in result.cases if (error := worst_error(case)) is not None), default=None)
    held = "every case passes" if result.passed else f"{passed} of {len(result.cases)} cases pass"
    setting = f"Weights: {_weights(result.weights)}; arithmetic in {result.dtype}"
    largest = "" if worst is None else f"; the largest error is {worst:.2e}"
    return f"Answer: {held} at a tolerance of {result.atol:g}{largest}. {setting}."


def _weights(path: str) -> str:
    """A weight file by its path, or "the bundled model" for kvscope's own."""
    from assets import path as asset_path

    return "the bundled model" if path in ("bundled", str(asset_path("model"))) else path


# Sample


def _sample(sample: Sample | None) -> list[Block]:
    if sample is None:
        return []
    rates = timing(sample.start_ns, sample.token_times_ns)
    return [
        Heading(2, "A sample"),
        paragraph(f"{model_name(sample.model)}, prompt “{sample.prompt}”, greedy, with the cache, continues:"),
        Verbatim(sample.text),
        Grid(
            title=f"{rates.n_tokens} tokens after a prompt of {sample.n_prompt_tokens}",
            columns=cells("Quantity", "Value"),
            rows=(
                cells("Time to first token (prefill)", _duration(rates.ttft_s)),
                cells("Time per output token after the first", _duration(rates.tpot_s)),
                cells("KV cache allocated by the engine", format_bytes(sample.kv_cache_bytes)),
                cells(
                    "KV cache predicted by the formula of Problem 1 (a)", format_bytes(sample.predicted_kv_cache_bytes)
                ),
                cells("Measured / predicted", _over(sample.kv_cache_bytes, sample.predicted_kv_cache_bytes)),
            ),
            numeric=frozenset({1}),
        ),
    ]


def _duration(seconds: float | None) -> str:
    return "too few tokens" if seconds is None else format_duration_s(seconds)


def _over(measured: int, predicted: int) -> str:
    return f"{measured / predicted:.4f}" if predicted else "no prediction"
