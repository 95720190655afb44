"""A calc `Table` as rich text, laid out for the cells there are. Pure: widgets and reports draw with it."""

from __future__ import annotations

from rich.text import Text

from calc.commands.render import cut_to, table_lines
from calc.commands.tables import Table

STYLES = {"head": "dim", "rule": "dim", "struck": "strike dim", "strong": "bold"}


def table_text(table: Table, width: int, *, rule: bool = False) -> Text:
    """The columns of `table` that fit in `width` cells; with `rule`, a line under the headings."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, (line, style) in enumerate(table_lines(table, cut_to(table, width), rule=rule)):
        text.append("\n" if number else "").append(line, STYLES.get(style, ""))
    return text
