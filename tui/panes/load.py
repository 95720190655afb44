"""The Load pane: requests that arrive over time, simulated at many rates; what users see, and where p99 exceeds the
limits."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
from bisect import insort
from dataclasses import replace
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, HorizontalGroup, VerticalScroll
from textual.widget import Widget
from textual.widgets import DataTable, Input, Static

from calc.commands.render import as_markdown
from calc.commands.tables import Table
from calc.units import format_number
from engine.text import plural
from tui.charts.chart_text import draw
from tui.form.load import ARRIVALS, LoadAsked
from tui.form.load_fields import FIELDS, LoadField, load_words
from tui.form.state import Analysis, AppState
from tui.panes.base import StateEdited
from tui.panes.pages import NEXT_PAGE, PICK_DEVICE, PagedPane
from tui.views.load import Run, course_chart, most_sentence, rate_chart, rate_sentence, rates_table, times_table
from tui.widgets.card import card
from tui.widgets.data_table import CalcTable
from tui.widgets.dial import ChoiceDial, Dial
from tui.widgets.growing_table import GrowingTable
from tui.widgets.option import Option
from tui.widgets.plot import PlotView
from tui.widgets.rate_slider import RateSlider
from tui.widgets.work import work

HELP = """\
Requests that arrive over time, simulated with the scheduler of vLLM's V1 engine with the times of the estimate
(docs/simulate.md). Rates from a tenth of the full load to above it are simulated in the background, one after another.

← → on the rate, or ↑ ↓ in the table, select a rate to see its percentiles, and the queue and the cache over time. ◂
and ┿ mark the highest rate at which p99 meets the limits. ┃ marks the full load: above it, the queue grows and never
drains (struck through). Lengths are one number, a range (512..2048) or a distribution (lognormal:800,0.7)."""

FIRST_LINE = 3
"""Fields beside the arrivals on a narrow screen; the others are below."""
SETTLE_S = 0.15
"""How long an edit waits for the next one before it is simulated."""
EXPORT_WIDTH, EXPORT_HEIGHT = 96, 24
WORKER = (sys.executable, "-m", "tui.live.load_worker")


class LoadPane(PagedPane):
    """The form, two sentences, the rate; tables on the left, plots on the right."""

    TITLE: ClassVar[str] = "Load"
    HELP: ClassVar[str] = HELP
    PAGES: ClassVar[tuple[str, ...]] = ("by rate", "over time", "times by rate", "percentiles")
    BINDINGS: ClassVar[list[BindingType]] = [PICK_DEVICE, *NEXT_PAGE]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._state: AppState | None = None
        self._words: list[str] = []
        self._runs: list[tuple[float, Run]] = []
        self._server: Run | None = None
        self._found: Run | None = None
        self._problem = ""
        self._moved = False
        self.is_settled = False
        """Whether everything requested is simulated."""

    def compose(self) -> ComposeResult:
        with Horizontal(id="load-form"):
            with HorizontalGroup(classes="line"):
                yield ChoiceDial(
                    "arrivals",
                    ARRIVALS,
                    ARRIVALS[0],
                    help="poisson: at random times. constant: at equal intervals",
                    id="load-arrivals",
                )
                yield from map(_option, FIELDS[:FIRST_LINE])
            with HorizontalGroup(classes="line"):
                yield from map(_option, FIELDS[FIRST_LINE:])
        yield Static(id="load-problem", markup=False)
        yield Static(id="load-sentence", markup=False)
        yield RateSlider(id="load-rate")
        yield self.page_label()
        with Horizontal(id="load-main"):
            with VerticalScroll(id="load-tables", can_focus=False):
                yield card("By rate", GrowingTable(id="load-rates"), id="card-load-rates")
                yield card("Times", GrowingTable(id="load-times"), id="card-load-times")
            with VerticalScroll(id="load-plots", can_focus=False):
                yield card("", PlotView(id="load-course"), id="card-load-course")
                yield card("", PlotView(id="load-curve"), id="card-load-curve")

    def on_mount(self) -> None:
        for page, name in enumerate(("rates", "course", "curve", "times")):
            self.query_one(f"#card-load-{name}").add_class(f"page-{page}")
        self.show_page(0)

    def first_focus(self) -> Widget:
        """The rate, so that ← and → change it at once."""
        return self.query_one("#load-rate")

    # --- what is asked ------------------------------------------------------------------------------------

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Show the question; simulate it if it has changed."""
        asked = state.load
        self.query_one("#load-arrivals", ChoiceDial).value = asked.arrivals
        with self.prevent(Input.Changed):
            for field in FIELDS:
                option = self.query_one(f"#load-{field.name}", Option)
                if option.problem or option.value != field.read(field.write(asked)):
                    option.text = field.write(asked)
                    option.accept()
        self.answer(state, analysis)

    def answer(self, state: AppState, analysis: Analysis) -> None:
        """Simulate the load of `state`; the form already shows it."""
        self._state = state
        words = shlex.split(" ".join(load_words(state.study, state.load)))
        if words != self._words:
            self._words = words
            self.is_settled = False
            self.run_worker(work(self._simulated, words), group="load", exclusive=True)

    @on(Dial.Changed, "#load-arrivals")
    @on(Option.Edited)
    def _edited(self, event: Dial.Changed | Option.Edited) -> None:
        event.stop()
        values: dict[str, Any] = {"arrivals": self.query_one("#load-arrivals", ChoiceDial).value}
        options = [self.query_one(f"#load-{field.name}", Option) for field in FIELDS]
        for option in options:
            values |= option.value
        problem = next((option.problem for option in options if option.problem), "")
        self._say(problem)
        if self._state is not None and not problem:
            state = replace(self._state, load=LoadAsked(**values))
            if state != self._state:
                self._state = state
                self.post_message(StateEdited(state, self))

    def _say(self, problem: str) -> None:
        self.show_problem("#load-problem", problem)

    # --- what is simulated --------------------------------------------------------------------------------

    async def _simulated(self, words: list[str]) -> None:
        """Follow a separate process: keys never wait for it, and a new question ends it."""
        await asyncio.sleep(SETTLE_S)
        self._runs, self._server, self._found, self._problem = [], None, None, ""
        self._moved = False
        self._show_all()
        done = False
        # Popen instead of asyncio's processes: a second cancellation would leave one of those running with its pipe
        # open.
        with subprocess.Popen([*WORKER, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            try:
                while line := await asyncio.to_thread(process.stdout.readline):
                    if not self.app.is_running:  # the widgets that would show it are gone
                        return
                    done = self._take(json.loads(line))
            finally:
                process.kill()
        if not done:
            self._problem = "The simulation ended without an answer."
        self.is_settled = True
        self._show_all()

    def _take(self, said: dict[str, Any]) -> bool:
        """Handle one answer of the process; returns whether it was the last."""
        if "run" in said and said["run"]["rate"] not in [rate for rate, _ in self._runs]:
            insort(self._runs, (said["run"]["rate"], said["run"]), key=lambda one: one[0])
        self._server, self._found = said.get("server", self._server), said.get("found", self._found)
        self._problem = said.get("problem", self._problem)
        if not self._moved and self._runs:
            self._choose(self._usual())
        elif "done" not in said:
            self._show_all()
        return "done" in said or "problem" in said

    def _usual(self) -> int:
        """The rate shown until the user chooses one: the highest that meets the limits, else the middle one."""
        most = None if self._found is None else self._found["value"]
        rates = [rate for rate, _ in self._runs]
        return rates.index(most) if most in rates else len(rates) // 2

    # --- what is shown ------------------------------------------------------------------------------------

    def _choose(self, at: int) -> None:
        self.query_one(RateSlider).show([rate for rate, _ in self._runs], at, most=self._most, full=self._full)
        self._show_all()

    @property
    def _most(self) -> float | None:
        return None if self._found is None else self._found["value"]

    @property
    def _full(self) -> float | None:
        return None if self._server is None else self._server["full_load_requests_per_s"]

    @property
    def run(self) -> Run | None:
        """The simulation at the chosen rate."""
        at = self.query_one(RateSlider).at
        return self._runs[at][1] if at < len(self._runs) else None

    def _show_all(self) -> None:
        at = min(self.query_one(RateSlider).at, max(0, len(self._runs) - 1))
        self.query_one(RateSlider).show([rate for rate, _ in self._runs], at, most=self._most, full=self._full)
        runs, table = [run for _, run in self._runs], self.query_one("#load-rates", CalcTable)
        table.show(rates_table(runs, self._most))
        if runs and table.cursor_row != at:
            table.move_cursor(row=at)
        times = times_table(self.run)
        self.query_one("#card-load-times").border_title = times.title
        self.query_one("#load-times", CalcTable).show(times)
        title = "Over time" if self.run is None else f"Over time at {format_number(self.run['rate'])} per second"
        self.query_one("#load-course", PlotView).show(course_chart(self.run, title=title))
        self.query_one("#load-curve", PlotView).show(rate_chart(runs, limits=self._limits))
        self.query_one("#load-sentence", Static).update("\n".join(self._sentences()))

    @property
    def _limits(self) -> dict[str, float]:
        return {} if self._state is None else dict(self._state.load.limits)

    def _sentences(self) -> list[str]:
        if self._problem:
            return [f"{self._problem[0].upper()}{self._problem[1:].rstrip('.')}."]
        if self.run is None:
            return ["Simulating …"]
        where = most_sentence(self._found, self._limits)
        if not where:
            where = f"Simulating … {plural(len(self._runs), 'rate')} so far."
        return [where, rate_sentence(self.run)]

    # --- choosing a rate ----------------------------------------------------------------------------------

    @on(Dial.Changed, "#load-rate")
    def _turned(self, event: Dial.Changed) -> None:
        event.stop()
        self._moved = True
        self._show_all()

    @on(DataTable.RowHighlighted, "#load-rates")
    def _row_chosen(self, event: DataTable.RowHighlighted) -> None:
        if not event.data_table.has_focus or event.cursor_row not in range(len(self._runs)):
            return  # the table was emptied for the new question
        if event.cursor_row != self.query_one(RateSlider).at:
            self._moved = True
            self._choose(event.cursor_row)

    @on(CalcTable.Left)
    def _next_table(self, event: CalcTable.Left) -> None:
        event.stop()

    # --- documents ----------------------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """The rates, and the percentiles of the chosen one."""
        found = (self.query_one(f"#load-{name}", CalcTable).table for name in ("rates", "times"))
        return tuple(table for table in found if table is not None and table.rows)

    def export_markdown(self) -> str:
        """The sentences, the tables, the plots as text, and the assumptions of the simulation."""
        charts = (course_chart(self.run), rate_chart([run for _, run in self._runs], limits=self._limits))
        plots = [f"```text\n{draw(chart, width=EXPORT_WIDTH, height=EXPORT_HEIGHT)}\n```" for chart in charts]
        notes = [] if self._server is None else ["\n".join(f"- {note}" for note in self._server["notes"])]
        parts = ["# Load over time", *self._sentences(), *map(as_markdown, self.tables()), *plots, *notes]
        return "\n\n".join(parts) + "\n"

    def command_line(self) -> str:
        """``kvscope simulate …`` at the chosen rate."""
        if self._state is None:
            return "kvscope simulate"
        rate = [] if self.run is None else ["--rate", repr(self.run["rate"])]
        return " ".join(["kvscope", "simulate", *load_words(self._state.study, self._state.load), *rate])


def _option(field: LoadField) -> Option:
    return Option(
        field.label,
        field.read,
        text=field.write(LoadAsked()),
        width=field.width,
        placeholder=field.blank,
        help=field.meaning,
        id=f"load-{field.name}",
    )
