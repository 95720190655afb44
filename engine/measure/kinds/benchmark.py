"""benchmark: the time of a prompt and new tokens, with and without the KV cache, by prompt length."""

from collections.abc import Sequence
from itertools import combinations

import msgspec

from engine.errors import OptionError
from engine.measure.measurement import Document, Measurement, PlainTable, machine_line, plain_document
from engine.measure.options import (
    MAX_REPEATS,
    MAX_TOKENS,
    MODEL_OPTIONS,
    NEW_TOKENS,
    REPEATS,
    Option,
    check_count,
    check_counts,
    check_ranks,
    check_threads,
    parse_counts,
    write_counts,
)
from engine.measure.own import OwnTimes
from engine.records import CompileMode, Machine, MeasurementFinished, OnModel, RowMeasured
from engine.text import duration, plural

PREDICTED_KEYS = (
    "with_cache_predicted_s", "with_cache_ratio", "without_cache_predicted_s", "without_cache_ratio",
    "prefill_predicted_s", "tpot_predicted_s", "why",
)  # fmt: skip
"""Keys of a row for the predictions, measured / predicted, and why they differ."""


class Benchmark(OnModel, frozen=True, kw_only=True):
    """Time `new_tokens` tokens after prompts of `lengths` tokens, with and without the KV cache."""

    lengths: tuple[int, ...] = (10, 50, 100, 500, 1000)
    new_tokens: int = 40
    repeats: int = 5
    warmup: int = 1
    compile: CompileMode = "off"
    """Off, so that both ways run the same code."""


class BenchmarkRow(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt length. Times are medians, minima and maxima over the repeats of prompt plus new tokens.

    `prefill_s` (prompt to first token) and `tpot_s` (mean over the later tokens; None with one new token) are medians
    with the cache. `speedup` is the ratio of the two medians.
    """

    prompt_tokens: int
    with_cache_s: float
    without_cache_s: float
    with_cache_min_s: float
    with_cache_max_s: float
    without_cache_min_s: float
    without_cache_max_s: float
    speedup: float
    prefill_s: float
    tpot_s: float | None
    kv_cache_bytes: int
    tpot_p50_s: float | None = None
    tpot_p95_s: float | None = None
    """Percentiles over every later token of every repeat, with the cache."""


class BenchmarkResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, with everything needed to interpret them. `notes` are whole sentences."""

    model: str
    new_tokens: int
    repeats: int
    warmup: int
    rows: tuple[BenchmarkRow, ...]
    machine: Machine
    notes: tuple[str, ...] = ()
    own: OwnTimes | None = None
    """What the model's own operators took, measured in the same rounds; None where they were not."""


class BenchmarkRowMeasured(RowMeasured, frozen=True, kw_only=True):
    """One prompt length of a `Benchmark` is done."""

    row: BenchmarkRow
    own: OwnTimes | None = None


class BenchmarkFinished(MeasurementFinished, frozen=True, kw_only=True):
    """Ends a `Benchmark`."""

    result: BenchmarkResult


def check(request: Benchmark) -> None:
    """Raise `OptionError` unless the sweep can be run."""
    if not request.lengths:
        raise OptionError("lengths", "the benchmark needs at least one prompt length, such as 10,50,100")
    check_counts("lengths", request.lengths, high=MAX_TOKENS, noun="prompt length")
    check_count("new_tokens", request.new_tokens, low=1, high=MAX_TOKENS)
    check_count("repeats", request.repeats, low=1, high=MAX_REPEATS)
    check_count("warmup", request.warmup, low=0, high=MAX_REPEATS)
    check_threads(request.threads)
    check_ranks(request.tp)


def falling_notes(rows: Sequence[BenchmarkRow]) -> tuple[str, ...]:
    """A warning if times fall with the prompt length by more than their spread, which no work explains."""
    ordered = sorted(rows, key=lambda row: row.prompt_tokens)
    return tuple(note for arm in ("with", "without") if (note := _falling_note(ordered, arm)))


def _falling_note(rows: Sequence[BenchmarkRow], arm: str) -> str:
    for shorter, longer in combinations(rows, 2):
        least, most = getattr(shorter, f"{arm}_cache_min_s"), getattr(longer, f"{arm}_cache_max_s")
        if most < least:
            return (
                f"These times cannot be right: {arm} the cache, every run with {longer.prompt_tokens:,} prompt tokens "
                f"was faster ({duration(most)} at most) than every run with {shorter.prompt_tokens:,} "
                f"({duration(least)} at least), although it is more work. Measure again when the machine is idle."
            )
    return ""


def document(result: BenchmarkResult, *, predicted: Sequence[Document] | None = None) -> Document:
    """{"command": "benchmark", "model", "new_tokens", "rows", "machine", "repeats", "warmup", "notes", "own_times"}.

    All times are in seconds; `tpot_s` is null with one new token. `predicted`: for each row keys that the calculator
    adds (`PREDICTED_KEYS`); null where nobody gave them. "own_times": what the model's own operators took in the same
    rounds.
    """
    fields = plain_document(result)
    fields["own_times"] = fields.pop("own")
    for index, row in enumerate(fields["rows"]):
        row.update(dict.fromkeys(PREDICTED_KEYS) if predicted is None else predicted[index])
    first = ("model", "new_tokens", "rows", "machine")
    rest = [name for name in fields if name not in first]
    return {"command": "benchmark", **{name: fields[name] for name in (*first, *rest)}}


def table(result: BenchmarkResult) -> PlainTable:
    """A row per prompt length, then the machine and the notes."""
    repeats = f"median of {plural(result.repeats, 'repeat')} after {result.warmup} warm-up"
    return PlainTable(
        title=f"benchmark {result.model}: the prompt and {plural(result.new_tokens, 'new token')}, {repeats}",
        header=(
            "prompt", "with cache", "min..max", "without", "min..max", "speedup", "prefill", "per token", "p95",
            "KV cache",
        ),
        rows=tuple(map(_cells, result.rows)),
        after=(machine_line(result.machine), *result.notes),
    )  # fmt: skip


def _cells(row: BenchmarkRow) -> tuple[str, ...]:
    return (
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
    )


OPTIONS = (
    *MODEL_OPTIONS,
    Option(
        name="lengths",
        flags=("--lengths",),
        field="lengths",
        read=parse_counts,
        write=write_counts,
        metavar="10,50,100",
        help="prompt lengths (default 10,50,100,500,1000)",
    ),
    NEW_TOKENS,
    REPEATS,
    Option(
        name="warmup",
        flags=("--warmup",),
        field="warmup",
        read=int,
        metavar="N",
        help="warm-up runs that are not counted (default 1)",
    ),
)

MEASUREMENTS = (
    Measurement(
        name="benchmark",
        order=3,
        summary="latency with and without the cache, by prompt length",
        description="Measure the latency with and without the KV cache, by prompt length.",
        doing="benchmarking",
        request=Benchmark,
        row=BenchmarkRowMeasured,
        finished=BenchmarkFinished,
        options=OPTIONS,
        check=check,
        key=lambda row: row.prompt_tokens,
        document=document,
        table=table,
        plots=True,
    ),
)
