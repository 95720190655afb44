"""Problem 2 (d): latency with and without the cache, with both curves explained by the work that calc predicts."""

from __future__ import annotations

from collections.abc import Sequence

from calc.units import format_count, format_decimal, format_duration_s, format_flops
from engine.measure.kinds.benchmark import BenchmarkResult, BenchmarkRow
from engine.records import Machine, ModelInfo
from tui.charts.plots import benchmark_chart, by_length
from tui.live.measured.benchmark import benchmark_table
from tui.live.sweep_times import predicted_sweep
from tui.live.sweep_work import ArmWork, SweepWork, sweep_work
from tui.report.model import Block, Figure, Grid, Heading, cells, grid_of, paragraph, plain_items
from tui.report.model_part import model_name


def latency_part(result: BenchmarkResult | None, model: ModelInfo | None) -> list[Block]:
    if result is None or not result.rows:
        return []
    rows = by_length(result.rows)
    expected = None if result.own is None else predicted_sweep(rows, result.own, new_tokens=result.new_tokens)
    basis = "" if expected is None else f" {expected.basis}"
    caption = (
        f"Time for {result.new_tokens} new tokens against prompt length, both axes logarithmic; "
        f"medians of {result.repeats} runs, bars from the least to the most.{basis}"
    )
    return [
        Heading(2, "(d) Latency with and without the cache (benchmark)"),
        paragraph("Answer: ", _gain(rows[0], rows[-1])),
        paragraph(
            f"{model_name(result.model)}: {result.new_tokens} new tokens after prompts of different lengths, the same "
            f"tokens with and without the cache, {result.warmup} warm-up and {result.repeats} timed runs each, in "
            "rounds over the lengths. Without the cache every token recomputes the whole sequence."
        ),
        grid_of(
            benchmark_table(rows),
            title="Latency by prompt length: medians; TTFT is the prefill, p50 and p95 are of single later tokens",
        ),
        Figure(chart=benchmark_chart(rows, expected, new_tokens=result.new_tokens), caption=(caption,)),
        *_explained(result, model),
        plain_items([*sweep_sentences(rows), *result.notes]),
        machine_grid(result.machine),
    ]


def _explained(result: BenchmarkResult, model: ModelInfo | None) -> list[Block]:
    """Both curves by the work that calc predicts, beside the measured times; empty if the model is not known."""
    if model is None:
        return []
    rows = by_length(result.rows)
    work = sweep_work(model, [row.prompt_tokens for row in rows], new_tokens=result.new_tokens)
    return [
        paragraph(
            "Predicted work. With the cache a run is one pass over the prompt of N tokens and "
            f"{result.new_tokens - 1} passes over one token; without it, {result.new_tokens} passes over N and more "
            "tokens. Each pass reads the weights once; activations are not counted. The least time is the roofline "
            "of each pass, with this machine's measured memory and arithmetic rates."
        ),
        work_grid(rows, work),
        plain_items(work_sentences(rows, work)),
    ]


def work_grid(rows: Sequence[BenchmarkRow], work: Sequence[SweepWork]) -> Grid:
    """FLOPs, bytes, least and measured time of both ways, by prompt length."""
    lines = []
    for row, done in zip(rows, work, strict=True):
        for arm, each, measured_s in (
            ("with", done.with_cache, row.with_cache_s),
            ("without", done.without_cache, row.without_cache_s),
        ):
            least = "–" if each.least_s is None else format_duration_s(each.least_s)
            over = "–" if not each.least_s else f"{measured_s / each.least_s:.1f}"
            lines.append(
                cells(
                    format_count(row.prompt_tokens), arm, format_flops(int(each.flops)),
                    format_decimal(int(each.moved_bytes)), least, format_duration_s(measured_s), over,
                )
            )  # fmt: skip
    return Grid(
        title="Predicted work beside measured time",
        columns=cells("Prompt", "Cache", "FLOPs", "Bytes read", "Least time", "Measured", "Measured / least"),
        rows=tuple(lines),
        numeric=frozenset({0, 2, 3, 4, 5, 6}),
    )


def work_sentences(rows: Sequence[BenchmarkRow], work: Sequence[SweepWork]) -> list[str]:
    """How the work and the times of both ways grow from the shortest prompt to the longest."""
    first, last, before, after = rows[0], rows[-1], work[0], work[-1]
    if last is first:
        return []
    span = f"From {first.prompt_tokens:,} to {last.prompt_tokens:,} prompt tokens"
    cached, plain = (after.with_cache, before.with_cache), (after.without_cache, before.without_cache)
    return [
        f"{span} the work without the cache grows {_growth(*plain)} in FLOPs, because every new token processes the "
        f"whole text again; the time grows {last.without_cache_s / first.without_cache_s:.1f} times.",
        f"{span} the work with the cache grows {_growth(*cached)} in FLOPs and "
        f"{cached[0].moved_bytes / cached[1].moved_bytes:.2f} times in bytes, because the text is processed once and "
        f"later tokens one at a time; the time grows {last.with_cache_s / first.with_cache_s:.1f} times.",
        f"At {last.prompt_tokens:,} tokens, the cache reduces the FLOPs to 1/{plain[0].flops / cached[0].flops:.1f}, "
        f"and the run is {last.speedup:.1f} times as fast; at {first.prompt_tokens:,} tokens it reduces them to "
        f"1/{plain[1].flops / cached[1].flops:.1f}, and the run is {first.speedup:.1f} times as fast.",
        *_besides(rows, work),
    ]


def _besides(rows: Sequence[BenchmarkRow], work: Sequence[SweepWork]) -> list[str]:
    """The cost of a pass besides the counted work, if measured / least time falls with the length."""
    if not work[0].without_cache.least_s or not work[-1].without_cache.least_s:
        return []
    short = rows[0].without_cache_s / work[0].without_cache.least_s
    long = rows[-1].without_cache_s / work[-1].without_cache.least_s
    if short < BESIDES * long:
        return []
    return [
        f"Without the cache, measured / least time falls from {short:.1f} to {long:.1f}: a pass has costs that are "
        "not counted (calls, small operations), and longer texts spread them over more work. This is why short "
        "prompts gain less than their FLOPs suggest."
    ]


BESIDES = 1.5
"""Minimum ratio of measured / least time between short and long passes for this sentence."""


def _growth(last: ArmWork, first: ArmWork) -> str:
    return f"{last.flops / first.flops:.1f} times"


def prefill_share(row: BenchmarkRow) -> float:
    """The share of prefill in the time with the cache."""
    return row.prefill_s / row.with_cache_s if row.with_cache_s else 0.0


def sweep_sentences(rows: Sequence[BenchmarkRow]) -> list[str]:
    """What the sweep shows: the share of prefill, and the time per token at both ends."""
    first, last = rows[0], rows[-1]
    if last is first:
        return [f"{prefill_share(last):.0%} of the time with the cache is prefill."]
    sentences = [
        f"With the cache, prefill takes {prefill_share(first):.0%} of the time at {first.prompt_tokens:,} tokens and "
        f"{prefill_share(last):.0%} at {last.prompt_tokens:,}."
    ]
    if first.tpot_s and last.tpot_s:
        sentences.append(
            f"Each token after the first takes {format_duration_s(first.tpot_s)} at {first.prompt_tokens:,} tokens "
            f"and {format_duration_s(last.tpot_s)} at {last.prompt_tokens:,}{_beyond_noise(first, last)}."
        )
    return sentences


def _beyond_noise(first: BenchmarkRow, last: BenchmarkRow) -> str:
    """Whether the times per token of two rows differ by more than the spread of single tokens."""
    if first.tpot_p95_s is None or last.tpot_p50_s is None or last.tpot_p50_s > first.tpot_p95_s:
        return ""
    return ", a difference within the spread of single tokens"


def _gain(first: BenchmarkRow, last: BenchmarkRow) -> str:
    def words(row: BenchmarkRow) -> str:
        if row.speedup >= 1:
            return f"{row.speedup:.1f} times faster with the cache at {row.prompt_tokens:,} tokens"
        return f"{1 / row.speedup:.1f} times slower with the cache at {row.prompt_tokens:,} tokens"

    ends = words(last) if last is first else f"{words(first)}, {words(last)}"
    return f"generation is {ends}."


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
