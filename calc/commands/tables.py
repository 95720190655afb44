"""Tables as data: built once from a report, shown by the app, printed by the command line, written in the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from calc.units import format_binary, format_bytes_exact, format_count, format_decimal, format_rate

if TYPE_CHECKING:
    from calc.explain.terms import Expr, Term
    from calc.fit.memory import MemoryReport, TpRow
    from calc.intensity.attention import PhaseCost
    from calc.intensity.study import IntensityReport
    from calc.sources.catalog import DeviceEntry, ModelEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Headings and rows of text. `numeric` columns (by index) are aligned to the right.

    `struck` rows (by index) are shown struck through: they are there to be seen as impossible. In a `chain` the
    cells after the first are equal to one another (formula, numbers put in, result).
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = field(default_factory=frozenset)
    struck: frozenset[int] = field(default_factory=frozenset)
    chain: bool = False


def _columns(first: int, last: int) -> frozenset[int]:
    return frozenset(range(first, last + 1))


def answer_table(report: MemoryReport) -> Table:
    """The assignment's table: parameters, parameter memory, KV cache per request, largest batch."""
    weights, kv = report.weight_bytes, report.kv_bytes_per_request
    state, active = report.state_bytes_per_sequence, report.parameters.active
    rows = [
        ("Total parameters", format_count(report.parameters.total), ""),
        ("Active parameters a token", format_count(active), f"{active / report.parameters.total:.1%}"),
        ("Parameter memory", format_decimal(weights), format_binary(weights)),
        ("KV cache per token", format_bytes_exact(report.kv_bytes_per_token), ""),
        (f"KV cache per request ({report.study.context:,} tokens)", format_decimal(kv), format_binary(kv)),
        ("State per sequence", format_decimal(state), format_binary(state)),
        ("Max batch size possible", format_count(report.max_batch), "" if report.fits else "does not fit"),
    ]
    absent = {"State per sequence"} if not state else set()
    absent |= {"Active parameters a token"} if not report.parameters.idle else set()
    return Table(
        title="Memory",
        columns=("Quantity", "Value", "Also"),
        rows=tuple(row for row in rows if row[0] not in absent),
        numeric=_columns(1, 2),
    )


def component_table(report: MemoryReport) -> Table:
    """Parameters by component with their share and bytes; the last row is the total."""
    counts = report.parameters
    each = report.study.weight_format.bytes_per_element
    rows = [
        (name, format_count(n), f"{n / counts.total:.1%}", format_decimal(n * each))
        for name, n in counts.components.items()
        if n
    ]
    rows.append(("total", format_count(counts.total), "100.0%", format_decimal(report.weight_bytes)))
    return Table(
        title="Parameters",
        columns=("Component", "Parameters", "Share", "Bytes"),
        rows=tuple(rows),
        numeric=_columns(1, 3),
    )


def tp_table(report: MemoryReport) -> Table:
    """Tensor parallelism: the equal split beside whole KV heads; rows no server could run are struck."""
    from calc.model.spec import Policy

    equal, whole = report.tp_tables[Policy.EQUAL_SPLIT], report.tp_tables[Policy.REPLICATED]
    rows = tuple(_tp_cells(a, b) for a, b in zip(equal, whole, strict=True))
    return Table(
        title="Tensor parallelism",
        columns=(
            "TP",
            "Weights per GPU",
            "KV/request per GPU",
            "Batch",
            "Whole heads: weights",
            "Whole heads: KV",
            "Whole heads: batch",
            "Remark",
        ),
        rows=rows,
        numeric=_columns(0, 6),
        struck=frozenset(i for i, row in enumerate(equal) if row.problem),
    )


def _tp_cells(equal: TpRow, whole: TpRow) -> tuple[str, ...]:
    def cells(row: TpRow) -> tuple[str, str, str]:
        batch = format_count(row.max_batch) if row.fits else "–"
        return format_decimal(row.weight_bytes_per_gpu), format_decimal(row.kv_bytes_per_request_per_gpu), batch

    if equal.problem:
        return (str(equal.tp), *cells(equal), "–", "–", "–", equal.problem)
    return (str(equal.tp), *cells(equal), *cells(whole), "" if whole.fits else "does not fit")


def term_value(term: Term) -> str:
    """``131,072 B``; bytes in larger units after it where that helps."""
    if term.unit == "B" and term.value >= 10**6:
        return f"{format_bytes_exact(term.value)} = {format_decimal(term.value)} ({format_binary(term.value)})"
    return format_bytes_exact(term.value) if term.unit == "B" else f"{format_count(term.value)} {term.unit}"


def derivation_table(terms: tuple[Term, ...], title: str = "Calculation") -> Table:
    """One row a step: what, formula, numbers put in, result with unit."""
    rows = tuple((t.name, t.formula, t.substituted, term_value(t)) for t in terms)
    return Table(title=title, columns=("Step", "Formula", "Numbers", "Result"), rows=rows, chain=True)


def step_table(cost: PhaseCost, title: str) -> Table:
    """FLOPs, bytes read and bytes written by each step of the algorithm; the last row is their sum."""
    from calc.explain.terms import to_text

    def formula(expression: Expr, value: int) -> str:
        return f"{to_text(expression)} = {value:,}" if value else "0"

    rows = [
        (
            s.name,
            formula(s.flops_formula, s.flops),
            f"{to_text(s.reads_formula)}",
            format_count(s.read_bytes),
            f"{to_text(s.writes_formula)}",
            format_count(s.write_bytes),
        )
        for s in cost.steps
    ]
    reads, writes = sum(s.read_bytes for s in cost.steps), sum(s.write_bytes for s in cost.steps)
    rows.append(("sum", format_count(cost.flops), "", format_count(reads), "", format_count(writes)))
    return Table(
        title=title,
        columns=("Step", "FLOPs", "Elements read", "Bytes read", "Elements written", "Bytes written"),
        rows=tuple(rows),
        numeric=frozenset({3, 5}),
    )


def formula_table(report: IntensityReport) -> Table:
    """FLOPs, bytes and intensity of both phases as formulas in N and d with their values."""
    from calc.explain.terms import to_text

    rows = []
    for cost in (report.prefill, report.decode):
        phase = str(cost.phase)
        limit = "grows without limit" if cost.limit is None else f"→ {cost.limit:.4g} as N grows"
        rows += [
            (phase, "FLOPs", to_text(cost.flops_formula), f"{cost.flops:,} FLOP"),
            (phase, "bytes", to_text(cost.bytes_formula), format_bytes_exact(cost.bytes)),
            (phase, "intensity", to_text(cost.intensity_formula), f"{cost.intensity:.4g} FLOP/B, {limit}"),
        ]
    return Table(title="Formulas", columns=("Phase", "Quantity", "Formula", "Value"), rows=tuple(rows))


def context_table(report: IntensityReport) -> Table:
    """Prefill attention against context."""
    rows = tuple(
        (format_count(p.context), format_count(p.flops), format_count(p.bytes), f"{p.intensity:.2f}")
        for p in report.prefill_by_context
    )
    return Table(
        title="Prefill by context", columns=("N", "FLOPs", "Bytes", "FLOP/B"), rows=rows, numeric=_columns(0, 3)
    )


def batch_table(report: IntensityReport) -> Table:
    """Decode against batch: attention alone, linear layers, whole step; as queried and with the model's own groups."""
    asked, own = report.query.group_size, report.query.model.group_size
    series = {asked: report.decode_by_batch, own: report.decode_by_batch_grouped}
    rows = tuple(
        (
            format_count(points[0].batch),
            *(f"{p.attention_intensity:.3f}" for p in points),
            f"{points[0].linear_intensity:.2f}",
            *(f"{p.step_intensity:.2f}" for p in points),
        )
        for points in zip(*series.values(), strict=True)
    )
    columns = ("Batch", *(f"Attention g={g}" for g in series), "Linear", *(f"Step g={g}" for g in series))
    numeric = _columns(0, len(columns) - 1)
    return Table(title="Decode by batch, FLOP/B", columns=columns, rows=rows, numeric=numeric)


def model_catalog_table(entries: Iterable[ModelEntry]) -> Table:
    """Names, parameters and shape of catalog models."""
    rows = []
    for entry in entries:
        m = entry.spec
        shape = f"{m.n_layers} x ({m.n_heads} q, {m.n_kv_heads} kv, {m.head_dim})"
        rows.append((entry.id, entry.hf_id, format_count(entry.parameters), shape, format_count(m.hidden_size)))
    columns = ("Name", "Hugging Face id", "Parameters", "Layers x heads", "Hidden size")
    return Table(title="Models", columns=columns, rows=tuple(rows), numeric=frozenset({2, 4}))


def device_catalog_table(entries: Iterable[DeviceEntry]) -> Table:
    """Names, memory, bandwidth and dense 16-bit peak of catalog devices; what is not known stays empty."""
    rows = []
    for entry in entries:
        d = entry.spec
        peak, ridge = d.peak_flops_per_s.get("bf16"), d.ridge()
        rows.append(
            (
                entry.id,
                d.name,
                format_binary(d.memory_bytes),
                format_rate(d.bandwidth_bytes_per_s) if d.bandwidth_bytes_per_s else "",
                format_rate(peak, "FLOP/s") if peak else "",
                f"{ridge:.0f}" if ridge else "",
            )
        )
    columns = ("Name", "Device", "Memory", "Bandwidth", "bf16 dense", "Ridge, FLOP/B")
    return Table(title="Devices", columns=columns, rows=tuple(rows), numeric=frozenset({2, 3, 4, 5}))
