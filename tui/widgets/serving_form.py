"""The served load, in lines above the Estimate pane: engine, load, lengths, limits, price, devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import HorizontalGroup, VerticalGroup
from textual.message import Message
from textual.widgets import Input, Label, Static

from calc.errors import CalcError
from calc.speed.asked import ENGINES
from tui.form.estimate import asked_of
from tui.form.serving import LOADS, Serving
from tui.form.serving_fields import BY_NAME, FIELDS, ServingField
from tui.widgets.dial import ChoiceDial, Dial
from tui.widgets.form import FormChecked
from tui.widgets.option import Option

LINES = (
    ("version", "tp"),
    ("count", "prompt_tokens", "new_tokens", "chunk", "prefix_hit", "draft"),
    ("limits", "price", "batches", "split"),
    ("devices",),
)
"""The fields by line; the dials of engine and load are on the first."""
COUNT_LABELS = {"batch": "batch", "clients": "clients"}


class ServingForm(VerticalGroup):
    """Posts `Edited` with what the user has set; `show` is silent. An impossible field keeps its last good value."""

    DEFAULT_CSS = """
    ServingForm {
        height: auto;
        .line { height: 1; }
        .pair { height: auto; layout: horizontal; }
        Option Input { background: $foreground 8%; }
        #serving-devices { width: 1fr; }
        #serving-terms { width: 82; }
        #serving-beside { width: 1fr; }
        #serving-problem { display: none; color: $text-error; height: auto; padding: 0 1; }
        &.-problem #serving-problem { display: block; }
    }
    """

    class Edited(Message):
        """The current load."""

        def __init__(self, serving: Serving) -> None:
            super().__init__()
            self.serving = serving

    def __init__(self) -> None:
        super().__init__(id="serving-form")
        self._serving = Serving()
        self._problem = ""

    def compose(self) -> ComposeResult:
        first, second, third, fourth = ([_option(BY_NAME[name]) for name in line] for line in LINES)
        with HorizontalGroup(classes="line"):
            yield ChoiceDial(
                "engine", ENGINES, ENGINES[0], help="The engine that serves the model", id="serving-engine"
            )
            yield from first
            yield ChoiceDial(
                "load",
                LOADS,
                LOADS[1],
                help=(
                    "batch: one static batch. clients: each sends its next request when the last one ends. "
                    "maximum: all requests at once, as many in a batch as fit"
                ),
                id="serving-load",
            )
        with HorizontalGroup(classes="line"):
            yield from second
        with HorizontalGroup(classes="pair"):
            with HorizontalGroup(classes="line", id="serving-terms"):
                yield from third
            with HorizontalGroup(classes="line", id="serving-beside"):
                yield from fourth
        yield Static(id="serving-problem", markup=False)

    def show(self, serving: Serving) -> None:
        """Show what is set; a field that means the same keeps its text."""
        self._serving = serving
        self.query_one("#serving-engine", ChoiceDial).value = serving.engine
        self.query_one("#serving-load", ChoiceDial).value = serving.load
        self._show_fields_of(serving.load)
        with self.prevent(Input.Changed):
            for field in FIELDS:
                option = self._field(field.name)
                if option.problem or _differs(option.value, serving):
                    option.text = field.write(serving)
                    option.accept()
        self._say("")

    def _show_fields_of(self, load: str) -> None:
        """Label the count; at maximum load, the count and the chunk have no effect."""
        count = self._field("count")
        count.query_one(Label).update(COUNT_LABELS.get(load, ""))
        count.display = self._field("chunk").display = load in COUNT_LABELS

    def _field(self, name: str) -> Option:
        return self.query_one(f"#serving-{name}", Option)

    @on(Dial.Changed)
    @on(Option.Edited)
    def _edited(self, event: Message) -> None:
        event.stop()
        values: dict[str, Any] = {
            "engine": self.query_one("#serving-engine", ChoiceDial).value,
            "load": self.query_one("#serving-load", ChoiceDial).value,
        }
        options = [self._field(field.name) for field in FIELDS]
        for option in options:
            values |= option.value
        self._show_fields_of(values["load"])
        edited, problem = replace(self._serving, **values), next((o.problem for o in options if o.problem), "")
        try:
            asked_of(edited)
        except CalcError as error:
            self._say(problem or str(error))
            return
        self._say(problem)
        if edited != self._serving:
            self._serving = edited
            self.post_message(self.Edited(edited))

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self.post_message(FormChecked(problem, self))
        self.query_one("#serving-problem", Static).update(f"✗ {problem}" if problem else "")
        self.set_class(bool(problem), "-problem")


def _option(field: ServingField) -> Option:
    text = field.write(Serving())
    return Option(
        field.label,
        field.read,
        text=text,
        width=field.width,
        placeholder=field.blank,
        help=field.meaning,
        id=f"serving-{field.name}",
    )


def _differs(values: dict[str, Any], serving: Serving) -> bool:
    return any(getattr(serving, name) != value for name, value in values.items())
