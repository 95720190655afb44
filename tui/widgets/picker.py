"""Choosing from a long list by typing: search, list and preview, shown over the pane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalGroup
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui.form.pick_list import Choice, PickList, column_widths, line

WIDTH = 104
"""Cells of the picker, where the screen has them."""
AROUND = 5
"""Border, padding and scroll bar."""


class Picker(ModalScreen[str | None]):
    """The list over the pane. Typing filters, ↑ ↓ move, Enter chooses, Esc cancels; returns the key or None."""

    DEFAULT_CSS = """
    Picker {
        align: center top; background: $background 60%;
        & > VerticalGroup {
            width: 104; max-width: 100%; height: auto; max-height: 100%; margin: 2 1 1 1; padding: 0 1;
            background: $surface; border: round $primary; border-title-color: $text-primary;
            border-subtitle-color: $text-muted;
        }
        Input { background: $foreground 8%; }
        OptionList {
            height: auto; max-height: 18; background: transparent; border: none; padding: 0;
            text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1;
            & > .option-list--option { padding: 0; }
        }
        #preview { height: auto; min-height: 3; max-height: 6; padding: 1 1 0 1; color: $text-muted; }
    }
    Screen.-short Picker OptionList { max-height: 9; }
    Screen.-tiny Picker OptionList { max-height: 4; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "cancel", priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
        Binding("pagedown", "move(8)", "Page down", show=False, priority=True),
        Binding("pageup", "move(-8)", "Page up", show=False, priority=True),
    ]

    AUTO_FOCUS = "#search"

    def __init__(self, pick: PickList, *, typed: str = "", current: str = "") -> None:
        super().__init__()
        self._pick, self._typed, self._current = pick, typed, current
        self._choices: Sequence[Choice] = ()
        self._columns: Sequence[int] = ()

    def compose(self) -> ComposeResult:
        with VerticalGroup() as box:
            box.border_title = self._pick.title
            box.border_subtitle = "type to search · ↑↓ to move · Enter to choose · Esc to cancel"
            yield Input(self._typed, placeholder=self._pick.prompt, compact=True, select_on_focus=False, id="search")
            yield OptionList(id="choices")
            yield Static(id="preview")

    def on_mount(self) -> None:
        """Show all entries first, with the current choice highlighted."""
        self.query_one("#choices", OptionList).can_focus = False
        self._lay_out()
        self._fill(self._typed)
        self._highlight_current()

    def offer(self, pick: PickList) -> None:
        """Replace the list; the typed text stays."""
        self._pick = pick
        if self.is_mounted:
            self._lay_out()
            self._fill(self.query_one("#search", Input).value)
            self._highlight_current()

    def on_resize(self) -> None:
        """Lay the columns out for the new width; the highlight stays."""
        options = self.query_one("#choices", OptionList)
        at = options.highlighted
        self._lay_out()
        self._fill(self.query_one("#search", Input).value)
        if at is not None and at < len(self._choices):
            options.highlighted = at

    def _highlight_current(self) -> None:
        keys = [choice.key for choice in self._choices]
        if self._current in keys and not self.query_one("#search", Input).value:
            self.query_one("#choices", OptionList).highlighted = keys.index(self._current)

    def _fill(self, text: str) -> None:
        self._choices = self._pick.search(text.strip())
        options = self.query_one("#choices", OptionList)
        options.clear_options()
        options.add_options([Option(self._line(choice), id=choice.key) for choice in self._choices])
        if self._choices:
            options.highlighted = 0
        else:
            self._preview(self._no_match(text.strip()))

    def _no_match(self, text: str) -> str:
        taken = self._pick.custom(text)
        return f"Press Enter to use {taken}" if taken else self._pick.empty or f"Nothing matches {text!r}."

    def _lay_out(self) -> None:
        """Columns for the whole list, the same whatever is searched for."""
        room = min(WIDTH, self.app.size.width - 2) - AROUND
        self._columns = column_widths(self._pick.search(""), self._pick.right, room)

    def _line(self, choice: Choice) -> Text:
        return Text(line(choice, self._columns, self._pick.right), no_wrap=True)

    def _preview(self, text: str) -> None:
        self.query_one("#preview", Static).update(Text(text))

    @on(Input.Changed, "#search")
    def _searched(self, event: Input.Changed) -> None:
        self._fill(event.value)

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_index < len(self._choices):
            self._preview(self._choices[event.option_index].preview())

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        if custom := self._pick.custom(text):
            self.dismiss(custom)
            return
        index = self.query_one("#choices", OptionList).highlighted
        if self._choices and index is not None:
            self.dismiss(self._choices[index].key)

    def action_move(self, step: int) -> None:
        """Move the highlight; stops at the ends."""
        options = self.query_one("#choices", OptionList)
        if self._choices:
            options.highlighted = max(0, min(len(self._choices) - 1, (options.highlighted or 0) + step))

    def action_leave(self) -> None:
        """Close without a choice."""
        self.dismiss(None)
