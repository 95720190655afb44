"""A calc `Table` drawn as it is: for small tables that are read, not moved through."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text
from textual import events
from textual.widgets import Static

from calc.commands.tables import Table

Variant = Table | tuple[Table, ...]
"""What to show at some width: a table, or a few one under the other."""
GAP = 2
"""Columns between two cells."""


def natural_width(table: Table) -> int:
    """Characters the table needs with no cell folded."""
    lines = [table.columns, *table.rows]
    return sum(max(cell_len(line[i]) for line in lines) + GAP for i in range(len(table.columns))) - GAP


def rich_table(table: Table, *, heading: bool = False) -> RichTable:
    """The table with right-aligned numbers and struck rows; no frame but a line under the headings."""
    drawn = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
        show_edge=False,
        title=Text(table.title, style="bold") if heading else None,
        title_justify="left",
    )
    for i, column in enumerate(table.columns):
        numeric = i in table.numeric
        justify: Literal["left", "right"] = "right" if numeric else "left"
        drawn.add_column(column, justify=justify, no_wrap=numeric, overflow="fold", header_style="bold")
    for i, row in enumerate(table.rows):
        total = bool(row) and row[0].strip().lower() in ("sum", "total")
        style = "strike dim" if i in table.struck else "bold" if total else ""
        drawn.add_row(*(Text(cell, style=style) for cell in row))
    return drawn


class TableView(Static):
    """Shows the first of some variants of a table that fits; the last one where none does."""

    DEFAULT_CSS = """
    TableView {
        height: auto; padding: 0; border-top: solid $foreground 20%;
        border-title-color: $foreground; border-title-style: bold; border-title-background: transparent;
    }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._variants: tuple[Variant, ...] = ()
        self._drawn: Variant | None = None

    @property
    def shown(self) -> Variant | None:
        """The variant on screen."""
        return self._drawn

    def show(self, *variants: Variant) -> None:
        """Show the first of `variants` that fits, widest first."""
        if variants != self._variants:
            self._variants = variants
            self._draw()

    def on_resize(self, event: events.Resize) -> None:
        """Another variant may fit now."""
        self._draw()

    def _draw(self) -> None:
        if not self._variants:
            return
        width = self.size.width or 80
        variant = next((v for v in self._variants if _width(v) <= width), self._variants[-1])
        if variant == self._drawn:
            return
        self._drawn = variant
        if isinstance(variant, Table):
            self.border_title = variant.title
            self.update(rich_table(variant))
        else:
            self.border_title = variant[0].title
            first, *rest = variant
            self.update(Group(rich_table(first), *(rich_table(t, heading=True) for t in rest)))


def _width(variant: Variant) -> int:
    return natural_width(variant) if isinstance(variant, Table) else max(map(natural_width, variant))
