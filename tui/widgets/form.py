"""One-line form widgets: typed fields with their interpretation or error in place, and switches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.suggester import Suggester
from textual.widget import Widget
from textual.widgets import Input

from tui.form.draft import hint
from tui.form.fields import FIELDS, Field
from tui.widgets.derivation import wrap
from tui.widgets.dial import ChoiceDial
from tui.widgets.styling import restyled


class FormChecked(Message):
    """The error of the form `origin` has changed; "" if it is valid."""

    def __init__(self, problem: str, origin: Widget) -> None:
        super().__init__()
        self.problem, self.origin = problem, origin


class FieldInput(Input):
    """The input of one field. ↑ and ↓ go to the field before and after."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Previous field", show=False),
        Binding("down,enter", "app.focus_next", "Next field", show=False),
    ]

    value = reactive("", init=False)
    """As in Input, but a keystroke does not lay out the whole screen: the width is fixed."""

    def __init__(self, field: Field, *, suggester: Suggester | None = None) -> None:
        # A whole-field selection on focus would turn a swallowed key into a lost number; see Textual #6605.
        super().__init__(
            id=f"field-{field.name}", classes="-valid", compact=True, select_on_focus=False, suggester=suggester
        )
        self.field = field
        self.tooltip = f"{field.meaning}\nAccepts {field.forms}"

    @property
    def content_width(self) -> int:
        """At least the field's own width: only longer text changes the scroll range."""
        return max(super().content_width, self.content_size.width)

    def update_node_styles(self, animate: bool = True) -> None:
        """Not before it is mounted, which styles it anyway: a form of fifteen fields would appear later."""
        if self.is_attached:
            super().update_node_styles(animate)

    @property
    def help_field(self) -> Field:
        """What F1 explains."""
        return self.field


LABEL_CELLS, GAP = 14, 1
WIDTHS = {False: 11, True: 16}
"""Cells of an input in a row of two and alone."""


class FormRow(Widget):
    """Labels with inputs side by side; below them, if there is one, the error or the interpretation of the typed text.

    The row draws labels and messages itself: a form of a hundred small widgets would be slow to appear.
    """

    DEFAULT_CSS = """
    FormRow {
        layout: horizontal; height: auto; color: $text-muted;
        FieldInput { height: 1; background: $foreground 8%; }
        FieldInput:focus { background: $primary 25%; }
        FieldInput.-bad { background: $error 30%; color: $text-error; }
        & > .row--label { color: $foreground 70%; }
        & > .row--error { color: $text-error; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"row--label", "row--error"}

    def __init__(self, *names: str, single: bool = False, suggester: Suggester | None = None) -> None:
        super().__init__()
        self._inputs = {name: FieldInput(FIELDS[name], suggester=suggester) for name in names}
        self._single, self._suffix = single, ""
        self._messages: tuple[str, ...] = ()
        self._wrong = False
        for widget in self._inputs.values():
            widget.styles.width = WIDTHS[single]
            widget.styles.margin = (0, GAP, 0, LABEL_CELLS)

    @property
    def inputs(self) -> dict[str, FieldInput]:
        """The row's inputs by field name."""
        return self._inputs

    @property
    def message(self) -> str:
        """The message below the inputs."""
        return "\n".join(self._messages)

    def compose(self) -> ComposeResult:
        yield from self._inputs.values()

    def render(self) -> Text:
        labels = "".join(FIELDS[name].label.ljust(LABEL_CELLS + WIDTHS[self._single] + GAP) for name in self._inputs)
        text = Text(no_wrap=True)
        text.append(labels, "label")
        if self._single:
            text.append(f" {self._suffix}", "label")
        for line in self._lines(self.content_size.width):
            text.append("\n").append(line, "error" if self._wrong else "label")
        return restyled(text, self, "row")

    def _lines(self, width: int) -> list[str]:
        return [line for text in self._messages for line in wrap(f" {text}", max(20, width), hang=3)]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """One line plus those of the message."""
        return 1 + len(self._lines(width))

    def on_click(self, event: events.Click) -> None:
        """A click on a label goes to its field."""
        if event.widget is self and event.y == 0:
            index = event.x // (LABEL_CELLS + WIDTHS[self._single] + GAP)
            names = list(self._inputs)
            self._inputs[names[min(index, len(names) - 1)]].focus()

    def say(self, errors: Mapping[str, str], *, note: str = "") -> None:
        """Show the errors of the row's fields, else how they were read (and `note`)."""
        for name, widget in self._inputs.items():
            widget.set_class(name in errors, "-bad")
        own = [f"✗ {errors[name]}" for name in self._inputs if name in errors]
        readings = [text for name, w in self._inputs.items() if name not in errors and (text := hint(name, w.value))]
        remarks = [*([] if self._single else ["  ".join(readings)]), note]
        messages = tuple(own or filter(None, remarks))
        said = (messages, "  ".join(readings), bool(own))
        if said != (self._messages, self._suffix, self._wrong):
            taller = messages != self._messages
            self._messages, self._suffix, self._wrong = said
            self.refresh(layout=taller)


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
        """Toggle it and post the change."""
        self.value = not self.value
        self.post_message(self.Changed(self))

    def on_click(self) -> None:
        """A click turns it."""
        self.action_turn()


class FieldDial(ChoiceDial):
    """One of a few words for a field: ← → or Space turn it."""

    DEFAULT_CSS = "FieldDial { padding: 0; }"
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
        """Without the label, which is before it as with all fields."""
        text = Text(no_wrap=True)
        text.append("◀ ", Style(meta={"turn": -1})).append(self.shown()).append(" ▶", Style(meta={"turn": 1}))
        return text

    @property
    def help_field(self) -> Field:
        """What F1 explains."""
        return self.field


class SwitchRow(Widget):
    """A label and switches, dials or a picker in one line."""

    DEFAULT_CSS = """
    SwitchRow {
        layout: horizontal; height: 1;
        & > .row--label { color: $foreground 70%; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"row--label"}

    def __init__(self, label: str, widgets: Iterable[Widget]) -> None:
        super().__init__()
        self._label, self._widgets = label, tuple(widgets)
        first = self._widgets[0]
        first.styles.margin = (0, 2 if isinstance(first, FieldDial) else 0, 0, LABEL_CELLS)

    def compose(self) -> ComposeResult:
        yield from self._widgets

    def render(self) -> Text:
        text = Text(no_wrap=True)
        text.append(self._label, "label")
        return restyled(text, self, "row")


class ListSuggester(Suggester):
    """Completes from a fixed list."""

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__(use_cache=False, case_sensitive=False)
        self._words = tuple(words)

    async def get_suggestion(self, value: str) -> str | None:
        """The first word that starts with `value`."""
        return next((word for word in self._words if value and word.startswith(value)), None)
