"""machine as the app shows it: the speed of matrix products on this machine, by dtype and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from calc.commands.tables import KEPT, Column, Table
from calc.units import format_decimal, format_duration_s, format_rate
from engine.measure.kinds.machine import ROWS
from engine.measure.machine_result import MachineResult, MachineRow
from engine.measure.registry import MEASUREMENTS
from tui.charts.chart import Axis, Chart, Series
from tui.form.sampling import read_dtypes
from tui.live.presentation import DialField, Presentation, TextField
from tui.live.result_text import medians

if TYPE_CHECKING:
    from tui.live.measurement import Job

FORM = (
    (
        TextField(name="dtypes", label="dtypes", read=read_dtypes, placeholder="fp32,bf16,int8,int4", width=22),
        DialField(
            name="measure",
            label="this machine",
            choices=("kept", "anew"),
            value="kept",
            help="kept: show the last measurement if it is still valid. anew: measure now.",
            take=lambda word: word == "anew",
        ),
    ),
)
SYMBOLS = {"fp32": "●", "bf16": "×", "fp16": "+", "int8": "o", "int4": "△"}


def machine_table(rows: Sequence[MachineRow]) -> Table:
    """A row per dtype: bytes per second of a one-row product, FLOP/s with few and many rows."""
    columns = (
        Column("Dtype"),
        Column("● Reads", numeric=True),
        *(Column(f"{n} rows", numeric=True, group="● Products", priority=_priority(n)) for n in ROWS),
    )
    return Table(title="This machine", columns=columns, rows=tuple(map(_cells, rows)))


def _priority(n_rows: int) -> int:
    """The most rows give the peak; one row gives the read rate again."""
    return KEPT if n_rows == ROWS[-1] else n_rows % 100


def _cells(row: MachineRow) -> tuple[str, ...]:
    rates = [row.matmul_flops_per_s.get(str(n)) for n in ROWS]
    return (
        row.dtype,
        format_rate(row.read_bytes_per_s),
        *("–" if rate is None else format_rate(rate, "FLOP/s") for rate in rates),
    )


def machine_chart(rows: Sequence[MachineRow]) -> Chart:
    """FLOP/s against the rows of a product, both axes logarithmic: one line per dtype."""
    series = tuple(
        Series(
            label=row.dtype,
            symbol=SYMBOLS.get(row.dtype, "●"),
            colour=index,
            points=tuple((float(n), rate / 1e9) for n, rate in sorted(_by_rows(row).items())),
        )
        for index, row in enumerate(rows)
    )
    return Chart(
        title="● Products by rows",
        x=Axis(title="rows", log=True, doubling=True, tick=lambda value: f"{value:,.0f}"),
        y=Axis(title="GFLOP/s", log=True, tick=lambda value: f"{value:,.3g}"),
        series=series,
        empty="dtypes appear here as they are measured",
    )


def _by_rows(row: MachineRow) -> dict[int, float]:
    return {int(n): rate for n, rate in row.matmul_flops_per_s.items()}


def outcome(job: Job) -> str:
    """When it was measured, the spread of times, and other facts about the machine."""
    result: MachineResult = job.result
    memory = "" if result.memory_bytes is None else f", {format_decimal(result.memory_bytes)} of memory"
    load = "" if result.load_average is None else f", load average {result.load_average:.1f}"
    how = f"{medians(result.rounds, 'rounds')}, spread {100 * result.spread:.0f} %{load}"
    return (
        f"✓ measured {result.measured_at}: {how}; an empty operator takes "
        f"{format_duration_s(result.operator_overhead_s)}{memory}"
    )


PRESENTATIONS = (
    Presentation(
        measurement=MEASUREMENTS["machine"],
        title="Measure this machine",
        hint="The speed of matrix products here, by dtype and rows",
        key="h",
        button="machine",
        help="measures what the engine's operators achieve on this machine: products of 1 to 512 rows in each dtype, "
        "reads by one-row products over more memory than any processor cache holds, and the time of an empty "
        "operator. The result is saved, and this machine can then be used like any other device (--device this).",
        form=FORM,
        table=lambda job: machine_table(job.rows),
        chart=lambda job: machine_chart(() if job is None else job.rows),
        figure=lambda job: replace(machine_chart(job.rows), caption=job.result.cpu),
        outcome=outcome,
    ),
)
