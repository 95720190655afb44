"""A calc `Table` to move through: rows by ↑ ↓ and the mouse, numbers right-aligned, impossible rows struck through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.widgets import DataTable

from calc.commands.render import Layout, column_labels, cut_to
from calc.commands.tables import Column, Row, Table

UNKNOWN_WIDTH = 80
"""Assumed width before the first layout."""


class CalcTable(DataTable[Text]):
    """Shows a `Table`. At its ends, ↑ and ↓ request the previous or next table (`Left`)."""

    DEFAULT_CSS = """
    CalcTable {
        height: auto; background: transparent; overflow: hidden auto;
        & > .datatable--header { background: transparent; color: $text-muted; text-style: none; }
        & > .datatable--hover { background: $primary 10%; }
        & > .datatable--cursor { background: $foreground 8%; color: $foreground; text-style: none; }
        &:focus > .datatable--cursor { background: $primary 35%; color: $foreground; text-style: bold; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "cursor_up", "Row", show=False),
        Binding("down", "cursor_down", "Row", show=False),
        Binding("home", "scroll_top", "First row", show=False),
        Binding("end", "scroll_bottom", "Last row", show=False),
    ]

    class Left(Message):
        """The cursor moves past an end: `step` is -1 or 1."""

        def __init__(self, table: CalcTable, step: int) -> None:
            super().__init__()
            self.table, self.step = table, step

    def __init__(self, *, id: str | None = None, marks: Mapping[str, str] | None = None) -> None:  # noqa: A002
        """`marks` gives the theme's colour for the sign that a row begins with."""
        super().__init__(id=id, cursor_type="row", zebra_stripes=False, show_row_labels=False)
        self._marks = marks or {}
        self._theme = ""
        self._shown: Table | None = None
        self._layout: Layout | None = None

    @property
    def table(self) -> Table | None:
        """The whole shown table, including columns that do not fit."""
        return self._shown

    @property
    def row(self) -> Row | None:
        """The row that the cursor is on."""
        rows = () if self._shown is None else self._shown.rows
        return rows[min(self.cursor_row, len(rows) - 1)] if rows else None

    @property
    def left_out(self) -> tuple[int, ...]:
        """Columns that do not fit."""
        return () if self._layout is None else self._layout.left_out

    def show(self, table: Table) -> None:
        """Show the columns of `table` that fit; the cursor stays on its row."""
        width = self.content_size.width - 2 * self.cell_padding
        layout = cut_to(table, width if width > 0 else UNKNOWN_WIDTH, wrap=False)
        same = table == self._shown and layout == self._layout and (not self._marks or self._theme == self.app.theme)
        before, self._shown = self._shown, table
        if not same:
            self._theme = self.app.theme
            self._draw(layout, headings=before is None or before.columns != table.columns or layout != self._layout)

    def on_resize(self) -> None:
        """Other columns may fit now."""
        if self._shown is not None:
            self.show(self._shown)

    def _draw(self, layout: Layout, *, headings: bool) -> None:
        table = self._shown
        assert table is not None
        self._layout = layout
        row, lines = self.cursor_row, (self.header_height, self.row_count)
        with self.app.batch_update():
            self.clear(columns=headings)
            if headings:
                self._add_headings(table, layout)
            for cells in table.rows:
                self.add_row(*(self._cell(cells, j, table.columns[j]) for j in layout.columns))
            self.move_cursor(row=min(row, len(table.rows) - 1))
        if lines != (self.header_height, self.row_count):
            self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Headings and rows as they are now: the table's own size is only worked out when it is idle."""
        return self.header_height + self.row_count

    def _add_headings(self, table: Table, layout: Layout) -> None:
        labels = column_labels(table, layout)
        self.header_height = max((label.count("\n") + 1 for label in labels), default=1)
        for i, label, width in zip(layout.columns, labels, self._widths_of(table, layout), strict=True):
            self.add_column(Text(label, justify="right" if table.columns[i].numeric else "left"), width=width)

    def _widths_of(self, table: Table, layout: Layout) -> Sequence[int | None]:
        """Of the columns that are shown; None: as wide as its cells, once the table is idle."""
        return [None for _ in layout.columns]

    def _cell(self, row: Row, index: int, column: Column) -> Text:
        style = "strike dim" if row.struck and column.numeric else "bold" if row.strong else ""
        text = Text(row[index], style=style, justify="right" if column.numeric else "left", no_wrap=True)
        if index == 0 and text.plain[:1] in self._marks:
            text.stylize(self.app.theme_variables.get(self._marks[text.plain[0]], ""), 0, 1)
        return text

    def action_cursor_up(self) -> None:
        """The row above, or the table before."""
        if self.cursor_row <= 0:
            self.post_message(self.Left(self, -1))
        else:
            super().action_cursor_up()

    def action_cursor_down(self) -> None:
        """The row below, or the table after."""
        if self.cursor_row >= self.row_count - 1:
            self.post_message(self.Left(self, 1))
        else:
            super().action_cursor_down()


def next_table(tables: Sequence[CalcTable], left: CalcTable.Left) -> None:
    """Move the cursor to the near end of the previous or next table; it stays at the ends of `tables`."""
    if left.table not in tables:  # it became empty while the key was on its way
        return
    at = tables.index(left.table) + left.step
    if 0 <= at < len(tables):
        table = tables[at]
        table.move_cursor(row=0 if left.step > 0 else table.row_count - 1)
        table.focus()
