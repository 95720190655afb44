"""A number on a scale, changed by keys, typing or dragging; marks on the scale show where something changes."""

from __future__ import annotations

from math import log2

from rich.style import Style
from rich.text import Text

from calc.units import format_count
from tui.widgets.dial import NumberDial
from tui.widgets.styling import component_style
from tui.widgets.track import Track

KNOB, LINE, MARK = "█", "─", "┿"
LABEL_CELLS, END_CELLS = 8, 10
LEAST_TRACK = 10


class Slider(Track, NumberDial):
    """``label ◀ value ▶ ├──────█────┿──────┤ most``, on a logarithmic scale. The track is clicked or dragged.

    `marks` are numbers on the scale, shown as ┿.
    """

    DEFAULT_CSS = """
    Slider {
        width: 1fr; height: 1;
        & > .slider--track { color: $foreground 35%; }
        & > .slider--mark { color: $text-warning; text-style: bold; }
        & > .slider--knob { color: $text-primary; }
    }
    """
    COMPONENT_CLASSES = {"slider--track", "slider--mark", "slider--knob"}  # noqa: RUF012

    def __init__(self, label: str, value: int, *, minimum: int, maximum: int, unit: str, help: str, id: str) -> None:  # noqa: A002
        super().__init__(label, value, minimum=minimum, maximum=maximum, unit=unit, help=help, id=id)
        self._marks: tuple[int, ...] = ()

    @property
    def marks(self) -> tuple[int, ...]:
        """The marked numbers."""
        return self._marks

    @marks.setter
    def marks(self, marks: tuple[int, ...]) -> None:
        if marks != self._marks:
            self._marks = marks
            self.refresh()

    @property
    def track(self) -> tuple[int, int]:
        """The first cell of the track, and how many it has."""
        head = LABEL_CELLS + 4 + max(END_CELLS, len(self.shown())) + (len(self.unit) + 1 if self.unit else 0) + 1
        return head, max(LEAST_TRACK, self.content_size.width - head - len(format_count(self._maximum)) - 1)

    def value_at(self, cell: int) -> int:
        """The number of a cell of the track, from its first one on; two figures, or all of a small one."""
        _, cells = self.track
        share = min(1.0, max(0.0, cell / max(1, cells - 1)))
        exact = float(self._minimum * (self._maximum / self._minimum) ** share)
        step = 10 ** max(0, len(str(int(exact))) - 2)
        return self._within(round(exact / step) * step)

    def doubled(self, value: int, times: float) -> int:
        """`value` doubled that many times (halved if negative), within the scale."""
        return self._within(round(value * 2.0**times))

    def cell_of(self, value: int) -> int:
        """The cell of the track that stands for a number."""
        _, cells = self.track
        low, high = log2(self._minimum), log2(self._maximum)
        return round((cells - 1) * (log2(self._within(value)) - low) / (high - low))

    def _within(self, value: int) -> int:
        return max(self._minimum, min(self._maximum, value))

    def render(self) -> Text:
        turn_down, turn_up = Style(meta={"turn": -1}), Style(meta={"turn": 1})
        text = Text(self.label.ljust(LABEL_CELLS), no_wrap=True)
        text.append("◀ ", turn_down).append(self.shown()).append(" ▶", turn_up)
        text.append(f" {self.unit}" if self.unit else "")
        head, cells = self.track
        text.append(" " * max(1, head - text.cell_len))
        signs = [LINE] * cells
        for mark in self._marks:
            if self._minimum <= mark <= self._maximum:
                signs[self.cell_of(mark)] = MARK
        signs[self.cell_of(self._value)] = KNOB
        looks = {name: component_style(self, f"slider--{name}") for name in ("track", "mark", "knob")}
        for sign in signs:
            text.append(sign, looks[{KNOB: "knob", MARK: "mark"}.get(sign, "track")])
        return text.append(f" {format_count(self._maximum)}", looks["track"])

    def get_content_width(self, *_: object) -> int:
        return 60

    def drag_to(self, cell: int) -> None:
        """Use the number of a cell and post the change."""
        value = self.value_at(cell)
        if value != self._value:
            self._drop()
            self._value = value
            self.refresh()
            self.post_message(self.Changed(self))
