"""The one-line field that shows a choice and asks for the list it came from."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget

from tui.form.fields import Field


class PickerField(Widget, can_focus=True):
    """Shows the choice; Enter, ↓, a click or typing opens the list."""

    DEFAULT_CSS = """
    PickerField {
        width: 1fr; height: 1; background: $foreground 8%; color: $foreground;
        text-wrap: nowrap; text-overflow: ellipsis;
        &:hover { background: $primary 15%; }
        &:focus { background: $primary 25%; text-style: bold; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "open", "choose"),
        Binding("up", "app.focus_previous", "Previous field", show=False),
        Binding("down", "app.focus_next", "Next field", show=False),
    ]

    class Opened(Message):
        """The list is requested; its search starts with the field's `take_typed`."""

        def __init__(self, field: PickerField) -> None:
            super().__init__()
            self.picker_field = field

    def __init__(self, field: Field) -> None:
        super().__init__(id=f"field-{field.name}")
        self.field = field
        self.tooltip = field.meaning
        self._value = self._typed = ""

    @property
    def help_field(self) -> Field:
        """What F1 explains."""
        return self.field

    @property
    def value(self) -> str:
        """What is shown as chosen."""
        return self._value

    @value.setter
    def value(self, value: str) -> None:
        self._value = value
        self.refresh()

    def render(self) -> Text:
        room = max(1, self.content_size.width - 2)
        shown = self._value if len(self._value) <= room else f"{self._value[: room - 1]}…"
        return Text(f"{shown.ljust(room)} ▾", no_wrap=True)

    def action_open(self) -> None:
        """Ask for the list."""
        self.post_message(self.Opened(self))

    def take_typed(self) -> str:
        """The initial search text."""
        typed, self._typed = self._typed, ""
        return typed

    def on_click(self) -> None:
        """A click opens the list."""
        self.action_open()

    def on_key(self, event: events.Key) -> None:
        """A letter or a digit starts a search."""
        if event.character and event.is_printable and not event.character.isspace():
            event.stop()
            self._search(event.character)

    def on_paste(self, event: events.Paste) -> None:
        """A pasted name is searched for."""
        event.stop()
        self._search(event.text)

    def _search(self, typed: str) -> None:
        self._typed = typed
        self.action_open()
