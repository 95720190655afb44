"""A calc `Table` drawn as it is: for small tables that are read, not moved through."""

from __future__ import annotations

from rich import box
from rich.table import Table as RichTable
from rich.text import Text
from textual.widgets import Static

from calc.tables import Table


def rich_table(table: Table, *, expand: bool = False) -> RichTable:
    """The table with right-aligned numbers and struck rows; no frame but a line under the headings."""
    drawn = RichTable(box=box.SIMPLE_HEAD, expand=expand, pad_edge=False, padding=(0, 1), show_edge=False)
    for i, column in enumerate(table.columns):
        numeric = i in table.numeric
        drawn.add_column(
            column, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold", header_style="bold"
        )
    for i, row in enumerate(table.rows):
        total = bool(row) and row[0].strip().lower() in ("sum", "total")
        style = "strike dim" if i in table.struck else "bold" if total else ""
        drawn.add_row(*(Text(cell, style=style) for cell in row))
    return drawn


class TableView(Static):
    """Shows a table under its title."""

    DEFAULT_CSS = "TableView { height: auto; }"

    def show(self, table: Table) -> None:
        """Show `table`."""
        self.border_title = table.title
        self.update(rich_table(table))
