"""The rate of a load, changed by keys or dragging among the simulated rates."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from calc.units import format_number
from tui.widgets.dial import Dial
from tui.widgets.styling import component_style
from tui.widgets.track import Track

KNOB, LINE, MOST, FULL = "█", "─", "┿", "┃"
SHOWN_CELLS = 8
LEAST_TRACK = 12


class RateSlider(Track, Dial):
    """``rate ◀ 12.3/s ▶ ───█────┿──┃─ 24.2/s``: ┿ is the highest rate within the limits, ┃ the full load.

    The line is clicked or dragged.
    """

    DEFAULT_CSS = """
    RateSlider {
        width: 1fr; height: 1;
        & > .slider--track { color: $foreground 35%; }
        & > .slider--most { color: $text-success; text-style: bold; }
        & > .slider--full { color: $text-error; text-style: bold; }
        & > .slider--knob { color: $text-primary; }
    }
    """
    COMPONENT_CLASSES = {"slider--track", "slider--most", "slider--full", "slider--knob"}  # noqa: RUF012

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(
            "rate",
            help="Requests per second. ← → step through the simulated rates; ┿: highest rate where p99 meets the "
            "limits, ┃: full load",
            id=id,
        )
        self._rates: tuple[float, ...] = ()
        self._most: float | None = None
        self._full: float | None = None
        self._at = 0

    def show(self, rates: Sequence[float], at: int, *, most: float | None, full: float | None) -> None:
        """The rates in order, the chosen one, and the marked ones."""
        self._rates, self._at, self._most, self._full = tuple(rates), at, most, full
        self.refresh()

    @property
    def at(self) -> int:
        """Which of the rates is chosen."""
        return self._at

    def shown(self) -> str:
        return (f"{format_number(self._rates[self._at])}/s" if self._rates else "–").rjust(SHOWN_CELLS)

    def turn(self, by: int) -> bool:
        at = max(0, min(len(self._rates) - 1, self._at + by))
        changed, self._at = at != self._at, at
        return changed

    @property
    def track(self) -> tuple[int, int]:
        """The first cell of the line, and how many it has: none before a simulation."""
        head = len(self.label) + 1 + 2 + SHOWN_CELLS + 2 + 1
        return head, max(LEAST_TRACK, self.content_size.width - head - SHOWN_CELLS) if self._rates else 0

    def cell_of(self, rate: float) -> int:
        """The cell of the line that stands for a rate."""
        _, cells = self.track
        return round((cells - 1) * rate / self._rates[-1])

    def nearest(self, cell: int) -> int:
        """The rate whose cell is nearest."""
        return min(range(len(self._rates)), key=lambda i: abs(self.cell_of(self._rates[i]) - cell))

    def render(self) -> Text:
        text = super().render()
        if not self._rates:
            return text
        _, cells = self.track
        signs = [(LINE, "track")] * cells
        marks = ((self._full, FULL, "full"), (self._most, MOST, "most"), (self._rates[self._at], KNOB, "knob"))
        for rate, sign, name in marks:
            if rate is not None and 0 <= rate <= self._rates[-1]:
                signs[self.cell_of(rate)] = sign, name
        looks: dict[str, Style] = {name: component_style(self, f"slider--{name}") for _, name in signs}
        text.append(" ")
        for sign, name in signs:
            text.append(sign, looks[name])
        return text.append(f" {format_number(self._rates[-1])}/s", looks.get("track"))

    def get_content_width(self, *_: object) -> int:
        return 60

    def drag_to(self, cell: int) -> None:
        """Choose the nearest rate and post the change."""
        at = self.nearest(cell)
        if at != self._at:
            self._at = at
            self.refresh()
            self.post_message(self.Changed(self))
