"""One-line form widgets: typed fields with their reading or error in place, and switches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import HorizontalGroup, VerticalGroup
from textual.message import Message
from textual.suggester import Suggester
from textual.widget import Widget
from textual.widgets import Input, Static

from tui.draft import hint
from tui.fields import FIELDS, Field
from tui.widgets.dial import ChoiceDial


class FieldInput(Input):
    """The input of one field. ↑ and ↓ go to the field before and after."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Previous field", show=False),
        Binding("down,enter", "app.focus_next", "Next field", show=False),
    ]

    def __init__(self, field: Field, *, suggester: Suggester | None = None) -> None:
        # A whole-field selection on focus would turn a swallowed key into a lost number; see Textual #6605.
        super().__init__(id=f"field-{field.name}", compact=True, select_on_focus=False, suggester=suggester)
        self.field = field
        self.tooltip = f"{field.meaning}\nAccepts {field.forms}"

    @property
    def help_field(self) -> Field:
        """What F1 explains."""
        return self.field


class FormRow(VerticalGroup):
    """Labels with widgets side by side; below them, when there is one, the error or the reading of what was typed."""

    DEFAULT_CSS = """
    FormRow {
        height: auto;
        & > HorizontalGroup { height: 1; }
        .label { width: 14; height: 1; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
        .hint { width: 1fr; height: 1; color: $text-muted; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
        .message { display: none; height: auto; padding: 0 0 0 1; }
        .message.-error { display: block; color: $text-error; }
        .message.-reading { display: block; color: $text-muted; }
        FieldInput { width: 11; background: $foreground 8%; margin: 0 1 0 0; }
        FieldInput:focus { background: $primary 25%; }
        FieldInput.-bad { background: $error 30%; color: $text-error; }
        &.-single FieldInput { width: 16; }
    }
    """

    def __init__(self, *names: str, single: bool = False, suggester: Suggester | None = None) -> None:
        super().__init__(classes="-single" if single else None)
        self._inputs = {name: FieldInput(FIELDS[name], suggester=suggester) for name in names}
        self._single = single
        self._hint = Static(classes="hint")
        self._message = Static(classes="message")

    @property
    def inputs(self) -> dict[str, FieldInput]:
        """The row's inputs by field name."""
        return self._inputs

    def compose(self) -> ComposeResult:
        with HorizontalGroup():
            for name, widget in self._inputs.items():
                label = Static(FIELDS[name].label, classes="label")
                label.tooltip = widget.tooltip
                yield label
                yield widget
            if self._single:
                yield self._hint
        yield self._message

    def on_click(self, event: events.Click) -> None:
        """A click on a label goes to its field."""
        labels = [child for child in self.query(".label") if child is event.widget]
        if labels:
            index = list(self.query(".label")).index(labels[0])
            list(self._inputs.values())[index].focus()

    def say(self, errors: dict[str, str], *, note: str = "") -> None:
        """Show what is wrong with the row's fields, else how they were read (and `note`)."""
        own = [errors[name] for name in self._inputs if name in errors]
        for name, widget in self._inputs.items():
            widget.set_class(name in errors, "-bad")
        readings = [text for name, w in self._inputs.items() if name not in errors and (text := hint(name, w.value))]
        if self._single:
            self._hint.update("  ".join(readings))
            readings = []
        readings += filter(None, [note])
        message = "\n".join(f"✗ {text}" for text in own) or "  ".join(readings)
        self._message.update(Text(message))
        self._message.set_class(bool(own), "-error")
        self._message.set_class(bool(readings) and not own, "-reading")


class Toggle(Widget, can_focus=True):
    """A switch of one line. Space, Enter or a click turns it; setting `value` is silent."""

    DEFAULT_CSS = """
    Toggle {
        width: auto; height: 1; padding: 0 1 0 0; color: $text-muted; text-wrap: nowrap;
        &.-on { color: $foreground; }
        &:hover { background: $primary 15%; }
        &:focus { background: $primary 25%; color: $foreground; text-style: bold; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter", "turn", "Switch", show=False),
        Binding("up", "app.focus_previous", "Previous field", show=False),
        Binding("down", "app.focus_next", "Next field", show=False),
    ]

    class Changed(Message):
        """The user turned a switch."""

        def __init__(self, toggle: Toggle) -> None:
            super().__init__()
            self.toggle = toggle

    def __init__(self, field: Field) -> None:
        super().__init__(id=f"field-{field.name}")
        self.field = field
        self.tooltip = field.meaning
        self._value = False

    @property
    def help_field(self) -> Field:
        """What F1 explains."""
        return self.field

    @property
    def value(self) -> bool:
        """Whether it is on."""
        return self._value

    @value.setter
    def value(self, value: bool) -> None:
        self._value = value
        self.set_class(value, "-on")
        self.refresh()

    def render(self) -> Text:
        return Text(f"[{'x' if self._value else ' '}] {self.field.label}", no_wrap=True)

    def get_content_width(self, *_: object) -> int:
        return len(self.field.label) + 4

    def action_turn(self) -> None:
        """Turn it and tell."""
        self.value = not self.value
        self.post_message(self.Changed(self))

    def on_click(self) -> None:
        """A click turns it."""
        self.action_turn()


class FieldDial(ChoiceDial):
    """One of a few words for a field: ← → or Space turn it."""

    DEFAULT_CSS = "FieldDial { padding: 0; margin: 0 2 0 0; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter", "turn(1)", "Next choice", show=False),
        Binding("up", "app.focus_previous", "Previous field", show=False),
        Binding("down", "app.focus_next", "Next field", show=False),
    ]

    def __init__(self, field: Field, choices: Iterable[str]) -> None:
        words = [str(word) for word in choices]
        super().__init__(field.label, words, words[0], help=field.meaning, id=f"field-{field.name}")
        self.field = field

    def render(self) -> Text:
        """Without the label: that stands before it, as with all fields."""
        text = Text(no_wrap=True)
        text.append("◀ ", Style(meta={"turn": -1})).append(self.shown()).append(" ▶", Style(meta={"turn": 1}))
        return text

    @property
    def help_field(self) -> Field:
        """What F1 explains."""
        return self.field


class SwitchRow(HorizontalGroup):
    """A label and switches or dials in one line."""

    DEFAULT_CSS = """
    SwitchRow {
        height: 1;
        .label { width: 14; height: 1; color: $text-muted; }
    }
    """

    def __init__(self, label: str, widgets: Iterable[Widget]) -> None:
        super().__init__()
        self._label, self._widgets = label, tuple(widgets)

    def compose(self) -> ComposeResult:
        yield Static(self._label, classes="label")
        yield from self._widgets


class ListSuggester(Suggester):
    """Completes from a fixed list."""

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__(use_cache=False, case_sensitive=False)
        self._words = tuple(words)

    async def get_suggestion(self, value: str) -> str | None:
        """The first word that starts with `value`."""
        return next((word for word in self._words if value and word.startswith(value)), None)
