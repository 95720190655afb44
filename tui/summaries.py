"""Short forms of a memory report for the Spec pane, and the report as a Markdown document."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table as Grid
from rich.text import Text

from calc.memory import MemoryReport
from calc.notes import memory_notes
from calc.render import as_markdown
from calc.specs import Policy, Study
from calc.tables import Table, answer_table, component_table, derivation_table, term_value, tp_table
from calc.units import format_count, format_decimal


def answer_grid(report: MemoryReport) -> Grid:
    """The assignment's table: quantity, value, the same in binary units."""
    grid = Grid.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True, style="dim")
    for name, value, also in answer_table(report).rows:
        look = "bold" if name.startswith("Max batch") else ""
        if name.startswith("Max batch") and not report.fits:
            look = "bold red"
        grid.add_row(name, Text(value, style=look or "bold"), also)
    return grid


def tp_grid(report: MemoryReport) -> Grid:
    """Weights and batch a GPU under both rules; rows no server could run are struck."""
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("TP", "weights/GPU", "KV/req/GPU", "batch", "whole heads: KV", "batch"):
        grid.add_column(name, justify="right", no_wrap=True)
    pairs = zip(report.tp_tables[Policy.EQUAL_SPLIT], report.tp_tables[Policy.REPLICATED], strict=True)
    for equal, whole in pairs:
        cells = (
            str(equal.tp),
            format_decimal(equal.weight_bytes_per_gpu),
            format_decimal(equal.kv_bytes_per_request_per_gpu),
            format_count(equal.max_batch) if equal.fits else "–",
            format_decimal(whole.kv_bytes_per_request_per_gpu),
            format_count(whole.max_batch) if whole.fits else "–",
        )
        grid.add_row(*cells, style="strike dim" if equal.problem else "")
    return grid


def steps_grid(report: MemoryReport) -> Grid:
    """Every step of the report in a line: what, formula, result."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for look in ("dim", "", "bold"):
        grid.add_column(style=look)
    for term in report.steps:
        grid.add_row(Text(term.name), Text(term.formula), Text(term_value(term)))
    return grid


def plain_grid(table: Table) -> Grid:
    """A small table without lines: headings dim, the row marked ◂ bold."""
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for i, name in enumerate(table.columns):
        grid.add_column(name, justify="right" if i in table.numeric else "left", no_wrap=True)
    for row in table.rows:
        grid.add_row(*map(Text, row), style="bold" if row[0].endswith("◂") else "")
    return grid


BAR_CELLS = 24


def component_bars(report: MemoryReport) -> Grid:
    """Parameters by component, with their share as a bar."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for i, justify in enumerate(("left", "right", "right", "left")):
        grid.add_column(justify="right" if justify == "right" else "left", no_wrap=True, style="dim" if i == 3 else "")
    total = report.parameters.total
    for name, count in report.parameters.components.items():
        if count:
            share = count / total
            grid.add_row(name, format_count(count), f"{share:.1%}", "█" * max(1, round(BAR_CELLS * share)))
    return grid


def sources_text(study: Study) -> str:
    """Where model and device come from."""
    lines = [f"{study.model.name}: {study.model.source}", f"{study.device.name}: {study.device.source}"]
    return "\n".join(lines)


def notes_text(notes: Iterable[str]) -> Grid:
    """Sentences with a bullet and a hanging indent."""
    grid = Grid.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column()
    for note in notes:
        grid.add_row("·", Text(note))
    return grid


def memory_markdown(report: MemoryReport) -> str:
    """The whole memory answer: tables, calculation, notes."""
    study = report.study
    parts = [
        f"# {study.model.name} on {study.device.name}, {study.context:,} tokens",
        f"Weights as {study.weight_format.name}, KV cache as {study.kv_format.name}. Model: {study.model.source}.",
        as_markdown(answer_table(report)),
        as_markdown(component_table(report)),
        as_markdown(tp_table(report)),
        as_markdown(derivation_table(report.steps)),
        "\n".join(f"- {note}" for note in memory_notes(report)),
    ]
    return "\n\n".join(parts) + "\n"
