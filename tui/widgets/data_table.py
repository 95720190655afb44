"""A calc `Table` to move through: rows by ↑ ↓ and the mouse, numbers to the right, impossible rows struck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.widgets import DataTable

from calc.commands.tables import Table


class CalcTable(DataTable[Text]):
    """Shows a `Table`. At its ends ↑ and ↓ ask for the table before or after (`Left`)."""

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
        """The cursor wants to go past an end: `step` is -1 or 1."""

        def __init__(self, table: CalcTable, step: int) -> None:
            super().__init__()
            self.table, self.step = table, step

    def __init__(
        self,
        *,
        id: str | None = None,  # noqa: A002
        headings: Sequence[str] | None = None,
        marks: Mapping[str, str] | None = None,
    ) -> None:
        """`headings` replace those of the tables shown (two lines each where a group has a name).

        `marks` gives the theme's colour for the sign that a row begins with.
        """
        super().__init__(id=id, cursor_type="row", zebra_stripes=False, show_row_labels=False)
        self._headings, self._marks = headings, marks or {}
        self._theme = ""
        self._shown: Table | None = None
        self._skipped: frozenset[int] = frozenset()

    @property
    def table(self) -> Table | None:
        """What is shown, whole (also the columns that are left out)."""
        return self._shown

    def show(self, table: Table, *, skip: frozenset[int] = frozenset()) -> None:
        """Show `table` without the columns in `skip`; the cursor stays on its row."""
        if table == self._shown and skip == self._skipped and (not self._marks or self._theme == self.app.theme):
            return
        self._theme = self.app.theme
        row, lines = self.cursor_row, (self.header_height, self.row_count)
        kept = [i for i in range(len(table.columns)) if i not in skip]
        same = self._shown is not None and self._shown.columns == table.columns and skip == self._skipped
        self._shown, self._skipped = table, skip
        with self.app.batch_update():
            self.clear(columns=not same)
            if not same:
                self._add_headings(table, kept)
            for i, cells in enumerate(table.rows):
                self.add_row(*(self._cell(table, i, j, cells[j]) for j in kept))
            self.move_cursor(row=min(row, len(table.rows) - 1))
        if lines != (self.header_height, self.row_count):
            self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Headings and rows as they are now: the table's own size is only worked out when it is idle."""
        return self.header_height + self.row_count

    def _add_headings(self, table: Table, kept: list[int]) -> None:
        headings = self._headings or table.columns
        self.header_height = 2 if any("\n" in heading for heading in headings) else 1
        for j in kept:
            self.add_column(Text(headings[j], justify="right" if j in table.numeric else "left"))

    def _cell(self, table: Table, row: int, column: int, cell: str) -> Text:
        total = table.rows[row][0] == "total"
        style = "strike dim" if row in table.struck and column in table.numeric else "bold" if total else ""
        text = Text(cell, style=style, justify="right" if column in table.numeric else "left", no_wrap=True)
        if column == 0 and cell[:1] in self._marks:
            text.stylize(self.app.theme_variables.get(self._marks[cell[0]], ""), 0, 1)
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
