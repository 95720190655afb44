"""A value changed with ← and →: a number that doubles and halves (or is typed), or one of a few choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget

from calc.errors import QuantityError
from calc.units import format_count, parse_count

STARTS = frozenset("0123456789.,-+")
"""Characters that start a typed number. Everything after them belongs to it, so that a wrong letter is not a
command."""
WORD_S = 1.0
"""Letters typed within this time of each other form one word."""


class Dial(Widget, can_focus=True):
    """``label ◀ value ▶ unit``. Posts `Changed` when the user turns it; setting `text` is silent."""

    DEFAULT_CSS = """
    Dial {
        width: auto; height: 1; padding: 0 1; color: $foreground; text-wrap: nowrap;
        &:focus { background: $primary 30%; text-style: bold; }
        &:hover { background: $primary 15%; }
        &.-invalid { color: $text-error; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "turn(-1)", "less", show=False),
        Binding("right", "turn(1)", "more", show=False),
    ]

    class Changed(Message):
        """The user turned the dial; `value` is its new value as text."""

        def __init__(self, dial: Dial) -> None:
            super().__init__()
            self.dial = dial

        @property
        def control(self) -> Dial:
            return self.dial

    def __init__(self, label: str, *, unit: str = "", help: str = "", id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.label, self.unit, self.help = label, unit, help
        self.tooltip = help or None

    def shown(self) -> str:
        """The value as it is written."""
        raise NotImplementedError

    def turn(self, by: int) -> bool:
        """Move by one step up or down; False at the end of the scale."""
        raise NotImplementedError

    def action_turn(self, by: int) -> None:
        """Turn the dial and post `Changed`."""
        if self.turn(by):
            self.refresh(layout=True)
            self.post_message(self.Changed(self))

    def render(self) -> Text:
        turn_down, turn_up = Style(meta={"turn": -1}), Style(meta={"turn": 1})
        text = Text(f"{self.label} ", no_wrap=True)
        text.append("◀ ", turn_down).append(self.shown()).append(" ▶", turn_up)
        return text.append(f" {self.unit}" if self.unit else "")

    def get_content_width(self, *_: object) -> int:
        return self.render().cell_len

    def on_click(self, event: events.Click) -> None:
        """The arrows are buttons; a click elsewhere moves a choice to its next value, but only selects a number."""
        by = event.style.meta.get("turn")
        if by is not None:
            self.action_turn(by)


class NumberDial(Dial):
    """A count: ← halves, → doubles, digits type a new one (``1024``, ``8k``, ``8Ki``), Enter takes it."""

    def __init__(
        self,
        label: str,
        value: int,
        *,
        minimum: int = 1,
        maximum: int = 2**24,
        unit: str = "",
        help: str = "",  # noqa: A002
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(label, unit=unit, help=help, id=id)
        self._value, self._minimum, self._maximum = value, minimum, maximum
        self.typed: str | None = None
        self.problem = ""

    @property
    def value(self) -> int:
        """The last good value."""
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        if value != self._value:
            self._value = value
            self.refresh(layout=True)

    def shown(self) -> str:
        return f"{self.typed}▏" if self.typed is not None else format_count(self._value)

    def turn(self, by: int) -> bool:
        self._drop()
        value = self._value * 2 if by > 0 else self._value // 2
        value = max(self._minimum, min(self._maximum, value))
        changed, self._value = value != self._value, value
        return changed

    def on_key(self, event: events.Key) -> None:
        """Typing: digits start it; Enter takes the number, Escape drops it."""
        character = event.character or ""
        if self.typed is not None and event.key in ("enter", "tab", "escape", "backspace"):
            self._edit(event.key)
            if event.key != "tab":
                event.stop()
                event.prevent_default()
        elif event.is_printable and (self.typed is not None or character in STARTS):
            self.typed = (self.typed or "") + character
            self._check()
            event.stop()

    def on_blur(self) -> None:
        """Losing the focus accepts a valid number and drops an invalid one."""
        if self.typed is not None:
            self._edit("enter")
            self._drop()

    def on_paste(self, event: events.Paste) -> None:
        """A pasted number counts as typed."""
        self.typed = (self.typed or "") + event.text.strip()[:32]
        self._check()
        event.stop()

    def _edit(self, key: str) -> None:
        if key == "escape":
            self._drop()
        elif key == "backspace":
            self.typed = (self.typed or "")[:-1]
            self._check()
        elif self._check():
            value = parse_count(self.typed or "", what=self.label, minimum=self._minimum, maximum=self._maximum)
            self._drop()
            if value != self._value:
                self._value = value
                self.post_message(self.Changed(self))
        self.refresh(layout=True)

    def _check(self) -> bool:
        try:
            parse_count(self.typed or "", what=self.label, minimum=self._minimum, maximum=self._maximum)
        except QuantityError as error:
            self.problem = str(error)
        else:
            self.problem = ""
        self.set_class(bool(self.problem), "-invalid")
        self.refresh(layout=True)
        self.post_message(self.Typed(self))
        return not self.problem

    def _drop(self) -> None:
        was_typing, self.typed, self.problem = self.typed is not None, None, ""
        self.remove_class("-invalid")
        if was_typing:
            self.refresh(layout=True)
            self.post_message(self.Typed(self))

    class Typed(Message):
        """The typed text changed; `dial.problem` says what is wrong with it, if anything."""

        def __init__(self, dial: NumberDial) -> None:
            super().__init__()
            self.dial = dial


class ChoiceDial(Dial):
    """One of a few words; it cycles, or the word is typed."""

    def __init__(
        self,
        label: str,
        choices: Sequence[str],
        value: str,
        *,
        unit: str = "",
        help: str = "",  # noqa: A002
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(label, unit=unit, help=help, id=id)
        self._choices, self._value = tuple(choices), value
        self._typed, self._typed_at = "", 0.0

    @property
    def value(self) -> str:
        """The chosen word."""
        return self._value

    @value.setter
    def value(self, value: str) -> None:
        if value != self._value:
            self._value = value
            self.refresh(layout=True)

    def shown(self) -> str:
        return self._value

    def turn(self, by: int) -> bool:
        self._value = self._choices[(self._choices.index(self._value) + by) % len(self._choices)]
        return len(self._choices) > 1

    def on_key(self, event: events.Key) -> None:
        """Typing a choice selects it; a letter that starts no choice is left to commands."""
        character = (event.character or "").lower() if event.is_printable else ""
        if not character or character.isspace():
            self._typed = ""
            return
        typing = bool(self._typed) and event.time - self._typed_at < WORD_S
        word = self._typed + character if typing else character
        meant = next((choice for choice in self._choices if choice.lower().startswith(word)), None)
        if meant is None and not typing:
            return
        event.stop()
        self._typed, self._typed_at = word, event.time
        if meant is not None and meant != self._value:
            self._value = meant
            self.refresh(layout=True)
            self.post_message(self.Changed(self))
