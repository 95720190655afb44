"""A calc `Table` for reading, not for moving through."""

from __future__ import annotations

from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

from calc.commands.render import cut_to
from calc.commands.tables import Table
from tui.views.table_text import table_text


class TableView(Widget):
    """Shows the columns of a table that fit. If `continued`, the others follow below the rows."""

    DEFAULT_CSS = """
    TableView {
        height: auto; padding: 0; border-top: solid $foreground 20%;
        border-title-color: $foreground; border-title-style: bold; border-title-background: transparent;
    }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None, continued: bool = False) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._table: Table | None = None
        self._continued = continued

    @property
    def table(self) -> Table | None:
        """The shown table, including columns that do not fit."""
        return self._table

    @property
    def shown(self) -> Table | None:
        """The table on screen: only the columns that fit."""
        if self._table is None:
            return None
        return self._table.with_columns(cut_to(self._table, self.content_size.width or 80).columns)

    def show(self, table: Table) -> None:
        """Show `table`."""
        if table != self._table:
            self._table = table
            self.border_title = table.title
            self.refresh(layout=True)

    def render(self) -> Text:
        return self._text(self.content_size.width or 80)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self._text(width).plain.count("\n") + 1

    def _text(self, width: int) -> Text:
        if self._table is None:
            return Text("")
        text = table_text(self._table, width, rule=True)
        left_out = cut_to(self._table, width).left_out
        if self._continued and left_out:
            rest = self._table.with_columns((0, *left_out))
            text.append("\n\n").append_text(table_text(rest, width, rule=True))
        return text
