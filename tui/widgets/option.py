"""A labelled one-line input for an option, read by a function; errors are shown next to the form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Label


class Option(Horizontal):
    """``label [text] unit``. `read` turns the text into a value or raises ValueError with one sentence."""

    DEFAULT_CSS = """
    Option { width: auto; height: 1; padding: 0 1; }
    Option Label { width: auto; color: $text-muted; }
    Option Input { width: 10; margin: 0 0 0 1; }
    Option:focus-within Label { color: $foreground; text-style: bold; }
    Option.-invalid Input { color: $text-error; text-style: underline; }
    """

    class Edited(Message):
        """The text changed; `option.problem` says whether it can be read."""

        def __init__(self, option: Option) -> None:
            super().__init__()
            self.option = option

    def __init__(
        self,
        label: str,
        read: Callable[[str], Any],
        *,
        text: str = "",
        placeholder: str = "",
        width: int | str = 10,
        help: str = "",  # noqa: A002
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(id=id)
        self.label, self.help, self._read = label, help, read
        self._input = Input(text, placeholder=placeholder, compact=True, select_on_focus=False)
        self._input.styles.width = width
        self._input.tooltip = help or None
        self.problem = ""
        self.value: Any = read(text)
        """The last value that could be read."""

    def compose(self) -> ComposeResult:
        yield Label(self.label)
        yield self._input

    @property
    def text(self) -> str:
        """What the input holds."""
        return self._input.value

    @text.setter
    def text(self, text: str) -> None:
        self._input.value = text

    @property
    def placeholder(self) -> str:
        """The meaning of a blank text."""
        return self._input.placeholder

    @placeholder.setter
    def placeholder(self, words: str) -> None:
        self._input.placeholder = words

    def accept(self) -> None:
        """Read text that was set by the program, without a message."""
        self.value, self.problem = self._read(self.text), ""
        self.remove_class("-invalid")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Read the text; keep the last good value if that fails."""
        event.stop()
        try:
            self.value = self._read(event.value)
            self.problem = ""
        except ValueError as error:
            self.problem = str(error)
        self.set_class(bool(self.problem), "-invalid")
        self.post_message(self.Edited(self))
