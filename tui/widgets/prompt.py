"""A text area for a prompt."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

MAX_HISTORY = 100


class Prompt(TextArea):
    """The prompt: Enter sends it, Ctrl+J or Shift+Enter starts a new line, ↑ and ↓ recall sent prompts.

    The initial text is a suggestion: it is selected, so that typing replaces it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "generate", priority=False),
        Binding("ctrl+j,shift+enter", "newline", "new line", show=False),
        Binding("ctrl+underscore,ctrl+slash", "undo", "undo", show=False),  # ctrl+z is the shell's
    ]

    class Sent(Message):
        """Enter was pressed."""

    def on_mount(self) -> None:
        """Suggest the initial text."""
        self.select_all()
        self._sent: list[str] = []
        self._back = 0
        self._draft = ""

    def remember(self) -> None:
        """Keep the text for ↑, as the last one that was sent."""
        if self.text.strip() and self._sent[-1:] != [self.text]:
            self._sent = [*self._sent[1 - MAX_HISTORY :], self.text]
        self._back = 0

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            self._taken(event)
            self.post_message(self.Sent())
        elif event.key in ("ctrl+j", "shift+enter"):
            self._taken(event)
            self.insert("\n")
        elif event.key == "up" and self.cursor_location[0] == 0 and self._back < len(self._sent):
            self._taken(event)
            self._recall(self._back + 1)
        elif event.key == "down" and self._back and self.cursor_location[0] == self.document.line_count - 1:
            self._taken(event)
            self._recall(self._back - 1)
        else:
            await super()._on_key(event)

    def _taken(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()

    def _recall(self, back: int) -> None:
        """The text sent `back` prompts ago; 0 is the text being typed."""
        if not self._back:
            self._draft = self.text
            if self._sent[-1:] == [self.text] and len(self._sent) > 1:  # it is still there
                back += 1
        self._back = min(back, len(self._sent))
        self.text = self._sent[-self._back] if self._back else self._draft
        self.move_cursor(self.document.end)
