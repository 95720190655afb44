"""A text area for a prompt."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea


class Prompt(TextArea):
    """The prompt: Enter sends it, Ctrl+J or Shift+Enter begins a new line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "generate", priority=False),
        Binding("ctrl+j,shift+enter", "newline", "new line", show=False),
        Binding("ctrl+underscore,ctrl+slash", "undo", "undo", show=False),  # ctrl+z is the shell's
    ]

    class Sent(Message):
        """Enter was pressed."""

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.post_message(self.Sent())
        elif event.key in ("ctrl+j", "shift+enter"):
            event.stop()
            event.prevent_default()
            self.insert("\n")
        else:
            await super()._on_key(event)
