"""batch: decode steps of several rows at once, each with its own prompt and cache."""

from collections.abc import Sequence

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
from engine.records import Machine, MeasurementFinished, OnModel, RowMeasured
from engine.text import duration, plural

MAX_BATCH = 1024


class Batch(OnModel, frozen=True, kw_only=True):
    """Time decode steps of several rows at once, for each of `batches` counts of rows.

    The longest row has `context` tokens before the first of `new_tokens` steps; `ragged` row lengths are evenly spread
    from half of that upwards, otherwise all are equal. Batches take turns in each of `repeats` rounds, after a warm-up
    round.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    context: int = 64
    new_tokens: int = 16
    repeats: int = 5
    ragged: bool = True


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """Decode steps of one batch: the median, least and greatest time of all steps of all rounds so far.

    `tokens_per_s` is the total of all rows: the batch size over the median step.
    """

    batch: int
    context_tokens: float
    """Tokens in a row at the middle of the run, mean over the rows; padding is not counted."""
    step_p50_s: float
    step_min_s: float
    step_max_s: float
    tokens_per_s: float
    kv_cache_bytes: int
    weight_bytes: int
    """Bytes of the matrices that a step multiplies with (of routed experts all)."""


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, and the median time of a prompt of `prefill_tokens`, which arithmetic limits. `notes`: sentences."""

    model: str
    context: int
    new_tokens: int
    repeats: int
    ragged: bool
    rows: tuple[BatchRow, ...]
    prefill_tokens: int
    prefill_s: float
    machine: Machine
    notes: tuple[str, ...] = ()
    own: OwnTimes | None = None
    """The times of the model's own operators, measured in the same rounds; None if not measured."""


class BatchRowMeasured(RowMeasured, frozen=True, kw_only=True):
    """A `Batch` has timed one of its batches in another round; the row covers all rounds so far."""

    row: BatchRow
    prefill_tokens: int
    prefill_s: float
    own: OwnTimes | None = None


class BatchFinished(MeasurementFinished, frozen=True, kw_only=True):
    """Ends a `Batch`."""

    result: BatchResult


def check(request: Batch) -> None:
    """Raise `OptionError` unless the batches can be run (memory is not checked)."""
    if not request.batches:
        raise OptionError("batches", "name at least one batch, such as 1,2,4,8 or 1..8")
    check_counts("batches", request.batches, high=MAX_BATCH, noun="batch")
    check_count("context", request.context, low=1, high=MAX_TOKENS)
    check_count("new_tokens", request.new_tokens, low=1, high=MAX_TOKENS)
    check_count("repeats", request.repeats, low=1, high=MAX_REPEATS)
    check_threads(request.threads)
    check_ranks(request.tp)


def rises(rows: Sequence[BatchRow], tokens_per_s: Sequence[float]) -> list[float]:
    """Each of `tokens_per_s`, one per row, over that of the smallest batch."""
    first = min(range(len(rows)), key=lambda index: rows[index].batch)
    return [rate / tokens_per_s[first] for rate in tokens_per_s]


def document(
    result: BatchResult,
    *,
    predicted_tokens_per_s: Sequence[float] | None = None,
    why: Sequence[str] | None = None,
    bytes_per_s: float | None = None,
    flops_per_s: float | None = None,
) -> Document:
    """{"command": "batch", "model", "context", "new_tokens", "repeats", "ragged", "rows", "prefill_tokens",
    "prefill_s", "machine", "notes", "bytes_per_s", "flops_per_s"}.

    A row: "batch", "context_tokens", "step_p50_s", "step_min_s", "step_max_s", "tokens_per_s", "kv_cache_bytes",
    "weight_bytes", "rise" (tokens per second over those of the smallest batch), "tokens_per_s_predicted",
    "rise_predicted", "step_predicted_s", "ratio" (measured over predicted time of a step) and "why" (the reason if they
    differ). Predictions and the two rates of the roofline come from the calculator: null if not given. "own_times": the
    times of the model's own operators in the same rounds.
    """
    document = {"command": "batch", **plain_document(result)}
    own_times = document.pop("own")
    predicted = predicted_tokens_per_s
    columns = {
        "rise": rises(result.rows, [row.tokens_per_s for row in result.rows]),
        "tokens_per_s_predicted": predicted,
        "rise_predicted": None if predicted is None else rises(result.rows, predicted),
        "step_predicted_s": None if predicted is None else _steps_s(result.rows, predicted),
        "ratio": None if predicted is None else _ratios(result.rows, predicted),
        "why": why,
    }
    for index, row in enumerate(document["rows"]):
        row.update({key: None if values is None else values[index] for key, values in columns.items()})
    return {**document, "bytes_per_s": bytes_per_s, "flops_per_s": flops_per_s, "own_times": own_times}


def _steps_s(rows: Sequence[BatchRow], tokens_per_s: Sequence[float]) -> list[float]:
    return [row.batch / rate for row, rate in zip(rows, tokens_per_s, strict=True)]


def _ratios(rows: Sequence[BatchRow], predicted_tokens_per_s: Sequence[float]) -> list[float]:
    """Measured over predicted times of a step."""
    return [rate / row.tokens_per_s for row, rate in zip(rows, predicted_tokens_per_s, strict=True)]


def title(result: BatchResult) -> str:
    """What was measured, in a line."""
    rows = "rows of up to" if result.ragged else "rows of"
    repeats = f"medians of {plural(result.repeats, 'round')} after 1 warm-up"
    return (
        f"batch {result.model}: {plural(result.new_tokens, 'step')} after {rows} {result.context:,} tokens, {repeats}"
    )


def table(result: BatchResult) -> PlainTable:
    """A row per batch, then the prompt that arithmetic limits, the machine and the notes."""
    gains = rises(result.rows, [row.tokens_per_s for row in result.rows])
    return PlainTable(
        title=title(result),
        header=("batch", "tokens/s", "rise", "step", "min..max", "KV cache"),
        rows=tuple(_cells(row, rise) for row, rise in zip(result.rows, gains, strict=True)),
        after=(
            f"a prompt of {plural(result.prefill_tokens, 'token')} takes {duration(result.prefill_s)}",
            machine_line(result.machine),
            *result.notes,
        ),
    )


def _cells(row: BatchRow, rise: float) -> tuple[str, ...]:
    return (
        f"{row.batch:,}",
        f"{row.tokens_per_s:,.1f}",
        f"{rise:.2f}x",
        duration(row.step_p50_s),
        f"{duration(row.step_min_s)}..{duration(row.step_max_s)}",
        f"{row.kv_cache_bytes:,} B",
    )


OPTIONS = (
    *MODEL_OPTIONS,
    Option(
        name="batches",
        flags=("--batches",),
        field="batches",
        read=parse_counts,
        write=write_counts,
        metavar="1..32",
        help="batch sizes: a list, or a range that doubles (default 1..32)",
    ),
    Option(
        name="context",
        flags=("--context",),
        field="context",
        read=int,
        metavar="N",
        help="tokens in the longest row (default 64)",
    ),
    NEW_TOKENS,
    REPEATS,
    Option(
        name="equal",
        flags=("--equal",),
        field="ragged",
        constant=False,
        help="give all rows the same length (default: from half the longest up)",
    ),
)

MEASUREMENTS = (
    Measurement(
        name="batch",
        order=4,
        summary="decode steps of 1 to 32 prompts at once: tokens per second",
        description="Measure decode steps of several prompts at once: tokens per second by batch size.",
        doing="benchmarking",
        request=Batch,
        row=BatchRowMeasured,
        finished=BatchFinished,
        options=OPTIONS,
        check=check,
        key=lambda row: row.batch,
        document=document,
        table=table,
        plots=True,
    ),
)
