"""A table that is filled row by row while it is visible."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from calc.commands.render import Layout, column_labels
from calc.commands.tables import Table
from tui.widgets.data_table import CalcTable


class GrowingTable(CalcTable):
    """Rebuilds its columns whenever a cell is wider than its column.

    DataTable widens a column when it is idle, but keeps lines painted before that.
    """

    _widths: tuple[int, ...] = ()

    def _draw(self, layout: Layout, *, headings: bool) -> None:
        assert self.table is not None
        widths = _widths(self.table, layout)
        changed, self._widths = widths != self._widths, widths
        super()._draw(layout, headings=headings or changed)

    def _widths_of(self, table: Table, layout: Layout) -> Sequence[int | None]:
        return self._widths


def _widths(table: Table, layout: Layout) -> tuple[int, ...]:
    """The widest cell, or heading line, of every shown column."""
    labels = column_labels(table, layout)
    return tuple(
        max([*map(cell_len, label.split("\n")), *(cell_len(row[i]) for row in table.rows)])
        for i, label in zip(layout.columns, labels, strict=True)
    )
