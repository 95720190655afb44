"""Short forms of a memory report for the Spec pane, and the report as a Markdown document."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from calc.commands.notes import memory_notes
from calc.commands.render import as_markdown
from calc.commands.tables import Table, answer_table, component_table, derivation_table, term_value, tp_table
from calc.fit.memory import MemoryReport
from calc.model.spec import Policy, Study
from calc.units import format_count, format_decimal

GAP = "  "


def columns(
    rows: Sequence[Sequence[str]], *, right: Collection[int], looks: Sequence[str] = (), gap: str = GAP
) -> Text:
    """Rows as aligned columns, `right` ones to the right; `looks` are styles by row.

    Plain text, not a rich table: these are drawn again at every keystroke, and a table takes ten times as long.
    """
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, row in enumerate(rows):
        padded = (
            " " * (width - cell_len(cell)) + cell if i in right else cell + " " * (width - cell_len(cell))
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        text.append("\n" if number else "")
        text.append(gap.join(padded).rstrip(), looks[number] if number < len(looks) else "")
    return text


def answer_grid(report: MemoryReport, width: int) -> Text:
    """The assignment's table in `width` cells: quantity, value, the same in binary units."""
    rows = answer_table(report).rows
    room = max(12, width - sum(max(cell_len(row[i]) for row in rows) for i in (1, 2)) - 2)
    fitted = [(_cut(name, room).ljust(room), value, also) for name, value, also in rows]
    last = "bold" if report.fits else "bold red"
    looks = ["" if not name.startswith("Max batch") else last for name, *_ in rows]
    return columns(fitted, right={1, 2}, looks=looks, gap=" ")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def tp_grid(report: MemoryReport) -> Text:
    """Weights and batch a GPU under both rules; rows no server could run are struck."""
    rows = [("TP", "weights/GPU", "KV/req/GPU", "batch", "whole heads: KV", "batch")]
    looks = ["dim"]
    for equal, whole in zip(report.tp_tables[Policy.EQUAL_SPLIT], report.tp_tables[Policy.REPLICATED], strict=True):
        rows.append(
            (
                str(equal.tp),
                format_decimal(equal.weight_bytes_per_gpu),
                format_decimal(equal.kv_bytes_per_request_per_gpu),
                format_count(equal.max_batch) if equal.fits else "–",
                format_decimal(whole.kv_bytes_per_request_per_gpu),
                format_count(whole.max_batch) if whole.fits else "–",
            )
        )
        looks.append("strike dim" if equal.problem else "")
    return columns(rows, right=range(6), looks=looks)


def plain_grid(table: Table) -> Text:
    """A small table without lines: headings dim, the row marked ◂ bold."""
    looks = ["dim", *("bold" if row[0].endswith("◂") else "" for row in table.rows)]
    return columns([table.columns, *table.rows], right=table.numeric, looks=looks)


BAR_CELLS = 24


def component_bars(report: MemoryReport) -> Text:
    """Parameters by component, with their share as a bar."""
    total = report.parameters.total
    rows = [
        (name, format_count(count), f"{count / total:.1%}", "█" * max(1, round(BAR_CELLS * count / total)))
        for name, count in report.parameters.components.items()
        if count
    ]
    return columns(rows, right={1, 2})


def sources_text(study: Study) -> str:
    """Where model and device come from."""
    lines = [f"{study.model.name}: {study.model.source}", f"{study.device.name}: {study.device.source}"]
    return "\n".join(lines)


def steps_grid(report: MemoryReport) -> Grid:
    """Every step of the report in a line: what, formula, result."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for look in ("dim", "", "bold"):
        grid.add_column(style=look)
    for term in report.steps:
        grid.add_row(Text(term.name), Text(term.formula), Text(term_value(term)))
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
