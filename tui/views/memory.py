"""Short forms of a memory report for the Spec pane, and the report as a Markdown document."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from calc.commands.headline import asked_notes, asked_steps, asked_table, of_study
from calc.commands.render import as_markdown
from calc.commands.tables import component_table, derivation_table, term_value, tp_table
from calc.fit.memory import MemoryReport
from calc.model.study import Study
from calc.units import format_count
from tui.views.table_text import table_text

GAP = "  "


def columns(
    rows: Sequence[Sequence[str]], *, right: Collection[int], looks: Sequence[str] = (), gap: str = GAP, width: int = 0
) -> Text:
    """Rows as aligned columns, with those in `right` right-aligned; `looks` are styles by row; the first column fills
    up to `width`.

    Plain text, not a rich table: this is redrawn at every keystroke, and a rich table takes ten times as long.
    """
    widths = _widths(rows)
    widths[0] += max(0, width - _line_width(rows, gap))
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, row in enumerate(rows):
        padded = (
            " " * (width - cell_len(cell)) + cell if i in right else cell + " " * (width - cell_len(cell))
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        text.append("\n" if number else "")
        text.append(gap.join(padded).rstrip(), looks[number] if number < len(looks) else "")
    return text


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _line_width(rows: Sequence[Sequence[str]], gap: str) -> int:
    widths = _widths(rows)
    return sum(widths) + len(gap) * (len(widths) - 1)


def _shortened(name: str) -> str:
    """A quantity without what it says in brackets; of the largest batch, these name the devices."""
    first, bracket, rest = name.partition(" (")
    return f"Max batch ({rest}" if bracket and first.startswith("Max batch") else first


def answer_grid(report: MemoryReport, width: int) -> Text:
    """The assignment's table in `width` cells: quantity, value, the same in binary units.

    If that is too wide, quantities first lose the text in brackets, then the binary units are dropped. A value is below
    its quantity only if the two do not fit on one line.
    """
    rows = [(name, value, also or note) for name, value, also, note in asked_table(report).rows]
    short = [(_shortened(name), *rest) for name, *rest in rows]
    lean = [row[:2] for row in short]
    last = "bold" if of_study(report).fits else "bold red"
    looks = [last if name.startswith("Max batch") else "" for name, *_ in rows]
    for layout in (rows, short, lean):
        if _line_width(layout, " ") <= width:
            return columns(layout, right={1, 2}, looks=looks, gap=" ", width=width)
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, ((name, value), look) in enumerate(zip(lean, looks, strict=True)):
        room = width - cell_len(name)
        text.append("\n" if number else "")
        text.append(name + value.rjust(room) if cell_len(value) < room else f"{name}\n{value.rjust(width)}", look)
    return text


def tp_grid(report: MemoryReport, width: int) -> Text:
    """Tensor parallelism in `width` cells; rows that no server can run are struck through, the reason is a note."""
    table = tp_table(report)
    return table_text(table.with_columns(range(len(table.columns) - 1)), width)


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
    """The sources of model and device."""
    lines = [f"{study.model.title}: {study.model.provenance}", f"{study.device.name}: {study.device.source}"]
    return "\n".join(lines)


def steps_grid(report: MemoryReport) -> Grid:
    """Every step of the report in one line: what, formula, result."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for look in ("dim", "", "bold"):
        grid.add_column(style=look)
    for term in asked_steps(report):
        grid.add_row(Text(term.name), Text(term.formula), Text(term_value(term)))
    return grid


def memory_markdown(report: MemoryReport) -> str:
    """The whole memory answer: tables, calculation, notes."""
    study = report.study
    parts = [
        f"# {study.model.title} on {study.device.name}, {study.context:,} tokens",
        f"Weights as {study.weight_format.name}, KV cache as {study.kv_format.name}. Model: {study.model.source}.",
        as_markdown(asked_table(report)),
        as_markdown(component_table(report)),
        as_markdown(tp_table(report)),
        as_markdown(derivation_table(asked_steps(report))),
        "\n".join(f"- {note}" for note in asked_notes(report)),
    ]
    return "\n\n".join(parts) + "\n"
