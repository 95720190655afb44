"""The inputs of the measurements of one side of the Benchmark tab, and the request that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from engine.records import Request
from tui.live.presentation import Line, Presentation, Side, TextField
from tui.widgets.dial import ChoiceDial
from tui.widgets.option import Option


class MeasurementForm(Vertical):
    """What the measurements of a side share, then what each has of its own."""

    def __init__(self, side: Side, shared: Sequence[Line], views: Sequence[Presentation]) -> None:
        super().__init__(classes="options")
        self._side, self._shared, self._views = side, shared, views

    def compose(self) -> ComposeResult:
        for line in self._shared:
            with Horizontal(classes="line"):
                yield from _inputs(self._side, line)
        for view in self._views:
            for line in view.form:
                with Horizontal(classes=f"line form-{view.view}"):
                    yield from _inputs(view.view, line)

    @property
    def problem(self) -> str:
        """The first option that cannot be read; "" where all can."""
        return next((option.problem for option in self.query(Option) if option.problem), "")

    def request(self, presentation: Presentation) -> Request | str:
        """The request that the form stands for, or what is wrong with it."""
        if self.problem:
            return self.problem
        measurement = presentation.measurement
        fields = set(measurement.request.__struct_fields__)
        values = self._values(self._side, self._shared) | self._values(presentation.view, presentation.form)
        values |= measurement.fixed
        return measurement.request(**{name: value for name, value in values.items() if name in fields})

    def _values(self, owner: str, lines: Sequence[Line]) -> dict[str, Any]:
        """What the inputs stand at, by the fields that they set."""
        values: dict[str, Any] = {}
        for each in (each for line in lines for each in line):
            if isinstance(each, TextField):
                values[each.name] = self.query_one(f"#option-{owner}-{each.name}", Option).value
            else:
                values[each.name] = each.take(self.query_one(f"#dial-{owner}-{each.name}", ChoiceDial).value)
        return values


def _inputs(owner: str, line: Line) -> Iterator[Widget]:
    """The widgets of one line."""
    for each in line:
        if isinstance(each, TextField):
            yield Option(
                each.label,
                each.read,
                text=each.text,
                placeholder=each.placeholder,
                width=each.width,
                id=f"option-{owner}-{each.name}",
            )
        else:
            yield ChoiceDial(each.label, each.choices, each.value, help=each.help, id=f"dial-{owner}-{each.name}")
