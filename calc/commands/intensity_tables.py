"""Tables of the intensity study: the steps of attention, its formulas, layers by kind, both sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calc.commands.tables import Column, Row, Table, numbers, share
from calc.explain.terms import Number, to_text
from calc.intensity.attention import Attention, PhaseCost
from calc.units import Quantity, format_bytes_exact, format_count, format_decimal, format_flops, format_number

if TYPE_CHECKING:
    from calc.intensity.layers import LayersCost
    from calc.intensity.study import IntensityReport


def step_table(cost: PhaseCost, title: str) -> Table:
    """FLOPs, bytes read and bytes written by each step of the algorithm; the last row is their sum."""
    rows = [
        Row(
            (
                s.name,
                to_text(s.flops_formula),
                format_count(s.flops),
                to_text(s.reads_formula),
                format_count(s.read_bytes),
                to_text(s.writes_formula),
                format_count(s.write_bytes),
            )
        )
        for s in cost.steps
    ]
    reads, writes = sum(s.read_bytes for s in cost.steps), sum(s.write_bytes for s in cost.steps)
    total = ("sum", "", format_count(cost.flops), "", format_count(reads), "", format_count(writes))
    columns = (
        Column("Step"),
        Column("FLOP formula", priority=3),
        Column("FLOPs", numeric=True),
        Column("Elements read", priority=2),
        Column("Bytes read", numeric=True),
        Column("Elements written", priority=1),
        Column("Bytes written", numeric=True),
    )
    return Table(title=title, columns=columns, rows=(*rows, Row(total, strong=True)))


def layers_table(cost: LayersCost, title: str) -> Table:
    """FLOPs, bytes and intensity of each kind of layer in one phase; the last row is their sum."""
    rows = [
        Row(
            (
                format_count(o.count),
                o.name,
                format_flops(o.flops),
                format_decimal(o.read_bytes),
                format_decimal(o.write_bytes),
                share(float(o.bytes), float(cost.bytes)),
                Quantity(f"{float(o.flops) / float(o.bytes):,.2f}", float(o.flops) / float(o.bytes)),
            ),
            terms=o.terms,
            title=f"{o.count:,} x {o.name}: each",
        )
        for o in cost.operators
    ]
    read, written = (sum(getattr(o, name) for o in cost.operators) for name in ("read_bytes", "write_bytes"))
    total = (
        "", "sum", format_flops(cost.flops), format_decimal(read),
        format_decimal(written), "", Quantity(f"{cost.intensity:,.2f}", cost.intensity),
    )  # fmt: skip
    columns = (
        Column("Layers", numeric=True),
        Column("Kind"),
        Column("FLOPs", numeric=True),
        Column("Read", numeric=True),
        Column("Written", numeric=True),
        Column("Bytes", numeric=True, priority=2),
        Column("FLOP/B", numeric=True),
    )
    return Table(title=title, columns=columns, rows=(*rows, Row(total, strong=True)))


def formula_table(report: IntensityReport) -> Table:
    """FLOPs, bytes and intensity of both phases as formulas in N (and d) with their values."""
    rows = []
    for cost in (report.shown_prefill, report.shown_decode):
        phase = str(cost.phase)
        limit = "grows without limit" if cost.limit is None else f"→ {format_number(cost.limit, figures=4)} as N grows"
        rows += [
            (phase, "FLOPs", to_text(cost.flops_formula), _flop(cost.flops)),
            (phase, "bytes", to_text(cost.bytes_formula), format_bytes_exact(cost.bytes)),
            (
                phase,
                "intensity",
                _intensity_text(cost),
                Quantity(f"{format_number(cost.intensity, figures=4)} FLOP/B, {limit}", cost.intensity, "FLOP/B"),
            ),
        ]
    return Table(title="Formulas", columns=("Phase", "Quantity", "Formula", "Value"), rows=tuple(rows))


def _flop(flops: Number) -> Quantity:
    return Quantity(f"{format_count(flops)} FLOP", flops, "FLOP")


def _intensity_text(cost: PhaseCost | LayersCost) -> str:
    """The quotient in lowest terms. For layers of several kinds it would only repeat the two rows above."""
    return to_text(cost.intensity_formula) if isinstance(cost, PhaseCost) else "FLOPs / bytes"


def flash_table(report: IntensityReport) -> Table:
    """Standard attention and FlashAttention side by side: bytes and intensity of both phases."""
    standard_first = report.query.attention is Attention.STANDARD
    rows = []
    for own, other in ((report.prefill, report.other_prefill), (report.decode, report.other_decode)):
        standard, flash = (own, other) if standard_first else (other, own)
        times = float(standard.bytes / flash.bytes)
        rows.append(
            (
                str(own.phase),
                format_count(standard.bytes),
                format_count(flash.bytes),
                Quantity(f"{format_number(times)} times", times),
                format_number(standard.intensity, figures=4),
                format_number(flash.intensity, figures=4),
            )
        )
    columns = (
        Column("Phase"),
        *numbers("Bytes", "Bytes, flash", "Fewer", "FLOP/B", "FLOP/B, flash"),
    )
    return Table(title="Standard attention and FlashAttention", columns=columns, rows=tuple(rows))


def context_table(report: IntensityReport) -> Table:
    """Prefill attention against context."""
    rows = [
        (
            format_count(p.context),
            format_count(p.flops),
            format_count(p.bytes),
            Quantity(f"{p.intensity:,.2f}", p.intensity),
        )
        for p in report.prefill_by_context
    ]
    return Table(title="Prefill by context", columns=numbers("N", "FLOPs", "Bytes", "FLOP/B"), rows=rows)


def batch_table(report: IntensityReport) -> Table:
    """Decode against batch size: attention alone, linear layers, whole step; as queried and with the model's own
    groups."""
    asked, own = report.query.group_size, report.query.model.group_size
    series = {f" g={asked}": report.decode_by_batch, f" g={own}": report.decode_by_batch_grouped}
    if report.layers is not None:
        series = {"": report.decode_by_batch}
    rows = [
        (
            format_count(points[0].batch),
            *(Quantity(f"{p.attention_intensity:.3f}", p.attention_intensity) for p in points),
            Quantity(f"{points[0].linear_intensity:.2f}", points[0].linear_intensity),
            *(Quantity(f"{p.step_intensity:.2f}", p.step_intensity) for p in points),
        )
        for points in zip(*series.values(), strict=True)
    ]
    names = ("Batch", *(f"Attention{name}" for name in series), "Linear", *(f"Step{name}" for name in series))
    return Table(title="Decode by batch, FLOP/B", columns=numbers(*names), rows=rows)


def phase_tables(report: IntensityReport, prefill: str, decode: str) -> tuple[Table, Table]:
    """Both phases with these titles: the steps of Algorithm 0, or the layers by kind."""
    if report.layers is not None:
        return layers_table(report.layers.prefill, prefill), layers_table(report.layers.decode, decode)
    return step_table(report.prefill, prefill), step_table(report.decode, decode)


def sweep_tables(report: IntensityReport) -> tuple[Table, ...]:
    """Formulas, FlashAttention compared with standard attention (if it is plain), and both sweeps."""
    flash = (flash_table(report),) if report.layers is None else ()
    return (formula_table(report), *flash, context_table(report), batch_table(report))
