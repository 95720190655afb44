"""The numbers beside a generation: rates, formats measured, latency plot, cache, both ways compared."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui.charts.plots import latency_chart
from tui.live.formats import Choice, Effect, effects_table
from tui.live.generation import Generation
from tui.views.generation import WIDTH, Pair, cache_text, comparison_table, meter_text, predicted_of, rate
from tui.widgets.plot import PlotView, theme_colours
from tui.widgets.table_view import TableView

LEAST_REFRESH_S = 0.2
COST_SHARE = 20
"""Numbers and plot are redrawn only after at least this many times their drawing time."""


class RunNumbers(VerticalScroll):
    """A column that follows a run. `due_s` is the earliest time of the next drawing, `rate` that of the run."""

    due_s = 0.0
    rate = "–"

    def compose(self) -> ComposeResult:
        yield Static(id="meter", markup=False)
        yield TableView(id="effects")
        yield PlotView(latency_chart(None, ()), id="plot-latency")
        yield Static(id="cache", markup=False)
        yield TableView(id="comparison")

    def show(self, run: Generation | None, pair: Pair) -> None:
        """Draw rates, plot, cache and comparison; the next drawing is delayed by the time this one took."""
        began = time.monotonic()
        rates = run.timing if run else None
        self.rate = rate(rates.tokens_per_s if rates else None)
        self._put("#meter", meter_text(run, rates, self.query_one("#meter").size.width or WIDTH))
        times = run.times_ns if run else []
        beside = predicted_of(run) if run else None
        expected_s = beside.tpot_s if beside is not None else None
        self.query_one(PlotView).show(latency_chart(run.start_ns if run else None, times, predicted_s=expected_s))
        self._put("#cache", cache_text(run, width=max(30, self.size.width - 4), colour=self._bar_colour))
        table = self.query_one("#comparison", TableView)
        table.display = pair != Pair()
        table.show(comparison_table(pair))
        spent = time.monotonic() - began + self.query_one(PlotView).drawing_s
        self.due_s = began + max(LEAST_REFRESH_S, COST_SHARE * spent)

    def show_effects(self, effects: Sequence[Effect], chosen: Choice | None) -> None:
        """The measured formats of a model, with the current one marked."""
        table = self.query_one("#effects", TableView)
        table.display = bool(effects)
        table.show(effects_table(effects, chosen))

    def _put(self, name: str, text: Text) -> None:
        """Show a text; if its height is unchanged, nothing is laid out again."""
        view = self.query_one(name, Static)
        before, width = view.content, view.size.width
        same = isinstance(before, Text) and width > 0 and height_of(before, width) == height_of(text, width)
        view.update(text, layout=not same)

    @property
    def _bar_colour(self) -> str:
        """The colour of the plot's line, for the bars of the same run."""
        red, green, blue = theme_colours(self.app.theme_variables, dark=self.app.current_theme.dark).series[0]
        return f"rgb({red},{green},{blue})"


def height_of(text: Text, width: int) -> int:
    """The minimum lines of a text: longer ones are wrapped."""
    return sum(max(1, -(-cell_len(line) // width)) for line in text.plain.split("\n"))
