"""F1: the focused field, then the pane, then the keys that work now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.table import Table as Grid
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Static

from calc.explain.terms import SYMBOLS
from tui.form.fields import Field
from tui.panes.base import Pane
from tui.widgets.keybar import key_name

GENERAL = """\
Sizes need a unit: 80GB is 80 x 10^9 bytes, 80GiB is 80 x 2^30 bytes. Counts: 8192, 8k (8,000), 8Ki (8,192), 1e3.
Numbers are calculated. Those marked ● were measured by the engine on this machine."""

Rows = list[tuple[str, str]]


def field_rows(field: Field) -> Rows:
    """Meaning, unit, accepted forms and the formula symbol of a form field."""
    rows = [("means", field.meaning)]
    if field.unit:
        rows.append(("unit", field.unit))
    if field.forms:
        rows.append(("accepts", field.forms))
    if field.symbol:
        symbol = SYMBOLS[field.symbol]
        rows.append(("in formulas", f"{symbol.text}: {symbol.meaning}"))
    return rows


def focus_help(widget: Widget | None) -> tuple[str, Rows]:
    """Title and rows for the focused widget or the nearest ancestor that explains itself."""
    node: DOMNode | None = widget
    while node is not None and not isinstance(node, Pane):
        field = getattr(node, "help_field", None)
        if isinstance(field, Field):
            return _title(field), field_rows(field)
        text = getattr(node, "help", None) or (node.tooltip if isinstance(node, Widget) else None)
        if isinstance(text, str) and text:
            return str(getattr(node, "label", "") or "This"), [("means", text)]
        node = node.parent
    return "", []


def _title(field: Field) -> str:
    return {"model": "Model", "device": "Device"}.get(field.name, field.label)


def keys_of(active: Iterable[ActiveBinding]) -> Rows:
    """Active keys and what they do, each action once, without the keys of every text field."""
    found: dict[str, list[str]] = {}
    for entry in active:
        binding = entry.binding
        if entry.enabled and binding.description and (_is_ours(entry) or binding.action == "command_palette"):
            what = entry.tooltip or binding.tooltip or binding.description
            found.setdefault(what[:1].upper() + what[1:], []).append(key_name(binding.key))
    return [(", ".join(dict.fromkeys(keys)), what) for what, keys in found.items()]


def _is_ours(entry: ActiveBinding) -> bool:
    """Whether the binding is declared by this app's own classes, not by the widgets they build on."""
    for kind in type(entry.node).__mro__:
        declared = vars(kind).get("BINDINGS", ())
        if any(isinstance(b, Binding) and entry.binding.key in b.key.split(",") for b in declared):
            return kind.__module__.startswith("tui.")
    return False


def help_text(title: str, rows: Rows, pane: Pane | None, keys: Rows) -> list[Text | Grid]:
    """The whole help as renderables."""
    parts: list[Text | Grid] = []
    if rows:
        parts += [_heading(title), _grid(rows), Text()]
    if pane is not None and pane.HELP:
        parts += [_heading(f"{pane.TITLE} pane"), Text(_unwrapped(pane.HELP)), Text()]
    parts += [_heading("Keys that work now"), _grid(keys), Text(), _heading("Numbers"), Text(_unwrapped(GENERAL))]
    return parts


def _unwrapped(text: str) -> str:
    """Paragraphs without the line breaks of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _heading(text: str) -> Text:
    return Text(text, style="bold underline")


def _grid(rows: Rows) -> Grid:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for left, right in rows:
        grid.add_row(Text(left), Text(right))
    return grid


class HelpScreen(ModalScreen[None]):
    """The help over the pane; Esc or F1 closes it."""

    DEFAULT_CSS = """
    HelpScreen {
        align: center middle; background: $background 60%;
        & > VerticalScroll {
            width: 88; max-width: 96%; height: auto; max-height: 92%; padding: 1 2;
            background: $surface; border: round $primary; border-title-color: $text-primary;
            border-subtitle-color: $text-muted;
        }
        Static { height: auto; width: 1fr; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "leave", "Close", priority=True)]

    AUTO_FOCUS = "VerticalScroll"

    def __init__(self, parts: list[Text | Grid]) -> None:
        super().__init__()
        self._parts = parts

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = "Help"
            box.border_subtitle = "↑↓ to scroll · Esc to close"
            for part in self._parts:
                yield Static(part)

    def action_leave(self) -> None:
        """Close."""
        self.dismiss(None)
