"""formats as the app shows it: memory, speed and error of each weight and cache format."""

from __future__ import annotations

from collections.abc import Sequence

from calc.commands.tables import KEPT, Column, Table
from calc.units import Quantity, format_decimal, format_duration_s, format_rate
from engine.measure.kinds.formats import FormatRow
from engine.measure.registry import MEASUREMENTS
from engine.text import plural
from tui.live.presentation import Presentation
from tui.live.result_text import times


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


PRESENTATIONS = (
    Presentation(
        measurement=MEASUREMENTS["formats"],
        title="Measure formats",
        hint="What each weight and cache format costs and gains",
        key="f",
        button="formats",
        help="measures the chosen model in float32, bfloat16, float16, int8, int4 and with an 8-bit cache, one after "
        "the other: memory, time per token, and how far its logits are from float32's on a text (the share of tokens "
        "where the top choice agrees, mean and largest error, perplexity).",
        table=lambda job: formats_table(job.rows),
        outcome=lambda job: (
            f"✓ {plural(len(job.rows), 'format')} measured on {plural(job.rows[0].n_tokens, 'token')} of text"
        ),
    ),
)
