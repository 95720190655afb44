"""batch as the app shows it: total tokens per second of several rows, measured and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.tables import KEPT, Column, Table
from calc.units import Quantity, format_count, format_decimal, format_duration_s
from engine.measure.kinds import batch
from engine.measure.kinds.batch import Batch, BatchResult, BatchRow, BatchRowMeasured, rises
from engine.measure.measurement import Document
from engine.measure.registry import MEASUREMENTS
from engine.records import ModelInfo
from tui.charts.chart import Chart
from tui.charts.plots import batch_decode_chart, batch_figure
from tui.form.sampling import ROWS_CHOICES, ROWS_HELP, read_batches, read_context, read_new_tokens
from tui.live.predict import BatchPrediction, batches_of_own, predicted_batches
from tui.live.presentation import DialField, Presentation, TextField
from tui.live.result_text import medians, spread_text, times

if TYPE_CHECKING:
    from tui.live.measurement import Job

FORM = (
    (
        TextField(name="batches", label="batches", read=read_batches, text="1..32", width=12),
        TextField(name="context", label="context", read=read_context, text="64", width=7),
        TextField(name="new_tokens", label="steps", read=read_new_tokens, text="16", width=5),
    ),
    (
        DialField(
            name="ragged",
            label="row lengths",
            choices=ROWS_CHOICES,
            value="ragged",
            help=ROWS_HELP,
            take=lambda word: word == "ragged",
        ),
    ),
)


def predict(job: Job, model: ModelInfo) -> BatchPrediction | None:
    """The prediction for the rows so far, from the model's own operators if they were timed; None before."""
    source: BatchResult | BatchRowMeasured | None = job.result
    if source is None and isinstance(job.latest, BatchRowMeasured):
        source = job.latest
    if source is None:
        return None
    rooflines = predicted_batches(model, job.rows, prefill_tokens=source.prefill_tokens, prefill_s=source.prefill_s)
    if rooflines is None or source.own is None or not isinstance(job.request, Batch):
        return rooflines
    longest = job.request.context + job.request.new_tokens / 2
    return batches_of_own(rooflines, job.rows, source.own, longest=longest)


def table(job: Job) -> Table:
    """A row per batch, measured and predicted."""
    return batch_table(job.rows, _predicted(job))


def chart(job: Job | None) -> Chart:
    """Tokens per second against batch, measured and predicted."""
    return batch_decode_chart(() if job is None else job.rows, None if job is None else _predicted(job))


def document(job: Job) -> Document:
    """The JSON document, with the predictions and the rates behind them."""
    predicted = _predicted(job)
    if predicted is None:
        return batch.document(job.result)
    return batch.document(
        job.result,
        predicted_tokens_per_s=predicted.tokens_per_s,
        why=predicted.why or None,
        bytes_per_s=predicted.bytes_per_s,
        flops_per_s=predicted.flops_per_s,
    )


def _predicted(job: Job) -> BatchPrediction | None:
    return job.predicted if isinstance(job.predicted, BatchPrediction) else None


RATE, RISE = "Tokens/s", "Rise"


def batch_table(rows: Sequence[BatchRow], predicted: BatchPrediction | None) -> Table:
    """A row per batch: total tokens per second and the rise over the smallest batch, measured and predicted."""

    def column(name: str, group: str = "", priority: int = KEPT, *, numeric: bool = True) -> Column:
        return Column(name, group=group, priority=priority, numeric=numeric)

    columns: tuple[Column, ...] = (
        column("Batch"), column("● measured", RATE), column("predicted", RATE), column("● / pred.", RATE, 6),
        column("● measured", RISE, 7), column("predicted", RISE, 5), column("limited by", "", 4, numeric=False),
        column("● Step p50", "", 3), column("min–max", "", 2), column("KV cache", "", 1),
    )  # fmt: skip
    said = predicted is not None and any(predicted.why)
    columns += (column("why they differ", "", 4, numeric=False),) if said else ()
    gains = rises(rows, [row.tokens_per_s for row in rows]) if rows else []
    cells = [
        (
            format_count(row.batch),
            Quantity(f"{row.tokens_per_s:,.1f}", row.tokens_per_s),
            *_predicted_cells(rows, index, gain, predicted),
            format_duration_s(row.step_p50_s),
            spread_text(row.step_min_s, row.step_max_s),
            format_decimal(row.kv_cache_bytes),
            *((predicted.why[index],) if said and predicted is not None else ()),
        )
        for index, (row, gain) in enumerate(zip(rows, gains, strict=True))
    ]
    return Table(title="Batch decode", columns=columns, rows=cells)


def _predicted_cells(
    rows: Sequence[BatchRow], index: int, gain: float, predicted: BatchPrediction | None
) -> tuple[str, ...]:
    """Predicted rate, measured / predicted, both rises, and what limits the step."""
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


PRESENTATIONS = (
    Presentation(
        measurement=MEASUREMENTS["batch"],
        title="Measure batch decode",
        hint="Tokens per second against batch, measured and predicted",
        key="b",
        button="batch",
        help="measures decode steps of several rows at once, each with its own prompt and cache. A step reads the "
        "weights once for all rows, so tokens per second rise with the batch size until arithmetic limits them. "
        "Measured values (●) stand beside predictions from the model's own operators, timed in the same rounds "
        "(from a roofline if the compiled step does not support the batch), with the reason if they differ. "
        "Batch sizes take turns, so the figures settle over the repeats.",
        form=FORM,
        table=table,
        chart=chart,
        outcome=lambda job: f"✓ {len(job.rows)} batches measured, {medians(job.result.repeats, 'rounds')}",
        predict=predict,
        document=document,
        figure=lambda job: batch_figure(job.result, _predicted(job)),
    ),
)
