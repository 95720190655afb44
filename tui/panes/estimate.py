"""The Estimate pane: how fast a load is served, as a sentence, a row per batch size, a plot, and compared with other
devices."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import DataTable, Static

from calc.commands.estimate_tables import frontier_table
from calc.commands.frontier import Row
from calc.commands.tables import Table
from calc.errors import CalcError
from tui.form.command_line import estimate_command
from tui.form.estimate import EstimateAnswer
from tui.form.state import Analysis, AppState
from tui.panes.base import StateEdited, collected
from tui.panes.pages import NEXT_PAGE, PICK_DEVICE, PagedPane, is_shown
from tui.views.estimate import (
    DeviceAnswer,
    device_rows,
    device_table,
    estimate_markdown,
    explained_device,
    explained_operator,
    explained_row,
    frontier_chart,
    frontier_rows,
    headline,
    most_users,
    operator_tables,
    remarks,
)
from tui.views.operators import Explained
from tui.widgets.card import card
from tui.widgets.data_table import CalcTable, next_table
from tui.widgets.derivation import Derivation
from tui.widgets.notes import Notes
from tui.widgets.plot import PlotView
from tui.widgets.serving_form import ServingForm

HELP = """\
How fast a load is served: the time to the first token (TTFT), the time per token after it (TPOT), tokens per second.
Every number is an estimate with a band from low to high; docs/estimates.md describes their accuracy.

Tab moves through the fields. The load is one static batch, clients in a closed loop (each sends its next request when
the last one ends), or all requests at once. The table has a row for each batch or number of clients; latency limits
are checked against the expected times, and a row names the limit that it exceeds. ↑ ↓ select a row; the operators
below are those of its step. Devices are compared under the same load; ◂ marks the current one. With a price,
"Worth/hour" is the price per hour at which a device costs as much per token as the current one. d chooses another
device."""

FRONTIER, DEVICES, DECODE, PREFILL = TABLES = (
    "estimate-frontier",
    "estimate-devices",
    "estimate-decode",
    "estimate-prefill",
)
PAGE_FOCUS = (FRONTIER, "estimate-beside", DEVICES, DECODE, "estimate-beside")
SETTLE_S = 0.05
"""How long an edit waits for the next one before it is computed."""


class EstimatePane(PagedPane):
    """The form, the sentence, tables on the left, plot and calculation on the right.

    The rows are computed one by one between other messages, so that keys never wait; an edit cancels the work on the
    previous state.
    """

    TITLE: ClassVar[str] = "Estimate"
    HELP: ClassVar[str] = HELP
    PAGES = ("by batch", "plot", "devices", "operators", "notes")
    BINDINGS: ClassVar[list[BindingType]] = [PICK_DEVICE, *NEXT_PAGE]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._state: AppState | None = None
        self._answer: EstimateAnswer | None = None
        self._rows: list[Row] = []
        self._devices: list[DeviceAnswer] = []
        self._users = ""
        self._current = FRONTIER
        self._chosen: tuple[int, str] | None = None
        self.is_settled = False
        """Whether all results of the state are shown."""

    def compose(self) -> ComposeResult:
        yield ServingForm()
        yield Static(id="estimate-sentence", markup=False)
        yield self.page_label()
        with Horizontal(id="estimate-main"):
            with VerticalScroll(id="estimate-tables", can_focus=False):
                yield card("By batch", CalcTable(id=FRONTIER), id="card-frontier")
                yield card("Devices", CalcTable(id=DEVICES), id="card-devices")
                yield card("Decode step", CalcTable(id=DECODE), id="card-decode")
                yield card("Prefill", CalcTable(id=PREFILL), id="card-prefill")
            with VerticalScroll(id="estimate-beside"):
                yield card("", PlotView(id="estimate-plot"), id="card-estimate-plot")
                yield card("Calculation", Derivation(id="estimate-derivation"), id="card-estimate-derivation")
                yield card("Notes", Notes(id="estimate-notes"), id="card-estimate-notes")

    def on_mount(self) -> None:
        for name, page in (
            ("frontier", 0), ("estimate-plot", 1), ("devices", 2), ("decode", 3), ("prefill", 3),
            ("estimate-derivation", 3), ("estimate-notes", 4),
        ):  # fmt: skip
            self.query_one(f"#card-{name}").add_class(f"page-{page}")
        self.show_page(0)

    def first_focus(self) -> Widget:
        """Where the focus starts: the table of the page (on a wide screen, the one in use), else the form."""
        narrow = self.screen.has_class("-narrow")
        wanted = PAGE_FOCUS[self.page] if narrow else self._current
        places = (self.query_one(f"#{name}") for name in (wanted, DEVICES))
        return next(filter(is_shown, places), self.query_one("#serving-engine"))

    def show_page(self, page: int) -> None:
        """Show a page from its top."""
        super().show_page(page)
        for name in ("tables", "beside"):
            self.query_one(f"#estimate-{name}", VerticalScroll).scroll_home(animate=False)

    # --- what is shown ------------------------------------------------------------------------------------

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Show `state`: the form at once, the answer as it is computed."""
        self.query_one(ServingForm).show(state.serving)
        self.answer(state, analysis)

    def answer(self, state: AppState, analysis: Analysis) -> None:
        """Compute the results of `state`; the form already shows it."""
        self._state = state
        self.is_settled = False
        self._work_out(analysis)

    @work(group="estimate", exclusive=True)
    async def _work_out(self, analysis: Analysis) -> None:
        """The sentence, then the rows, then how many users meet the limits, then the devices."""
        await asyncio.sleep(SETTLE_S)
        self._answer = answer = analysis.estimate
        self._users = ""
        self._show_answer()
        try:
            self._rows = await collected(frontier_rows(answer))
            self._users = most_users(answer)
        except CalcError as error:  # a batch of the table cannot run, although the requested load can
            self._rows, self._users = [], f"No table: {error}."
        self._show_rows()
        self._show_sentence()
        self._devices = await collected(device_rows(analysis.state))
        self._show_devices()
        self.is_settled = True

    def _show_answer(self) -> None:
        assert self._answer is not None
        self._show_sentence()
        notes = remarks(self._answer)
        self._show_card("estimate-notes", bool(notes))
        self.query_one("#estimate-notes", Notes).show(notes)

    def _show_sentence(self) -> None:
        assert self._answer is not None
        words = " ".join(filter(None, (headline(self._answer), self._users)))
        self.query_one("#estimate-sentence", Static).update(words)

    def _show_rows(self) -> None:
        assert self._answer is not None
        table = frontier_table(self._rows)
        self.query_one("#card-frontier").border_title = table.title
        for name in ("frontier", "estimate-plot"):
            self._show_card(name, bool(self._rows))
        self._table(FRONTIER).show(table)
        self._choose_what_is_asked()
        self.query_one("#estimate-plot", PlotView).show(frontier_chart(self._answer, self._rows))
        self._show_behind()

    def _choose_what_is_asked(self) -> None:
        """Move the cursor to the requested row if the requested number has changed."""
        assert self._state is not None
        serving, batches = self._state.serving, [row.batch for row in self._rows]
        asked = serving.count, serving.load
        if asked != self._chosen and serving.count in batches:
            self._table(FRONTIER).move_cursor(row=batches.index(serving.count))
        self._chosen = asked

    def _show_devices(self) -> None:
        assert self._state is not None
        self._table(DEVICES).show(device_table(self._devices, self._state.serving.price))
        self._show_behind()

    # --- the row that is explained ------------------------------------------------------------------------

    @on(DataTable.RowHighlighted)
    def _moved(self, event: DataTable.RowHighlighted) -> None:
        if event.data_table.has_focus:
            self._current = event.data_table.id or FRONTIER
            self._show_behind()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The focused table is the one that is explained and copied."""
        if isinstance(event.widget, CalcTable):
            self._current = event.widget.id or FRONTIER
            self._show_behind()

    @on(CalcTable.Left)
    def _next_table(self, event: CalcTable.Left) -> None:
        tables = [self._table(name) for name in TABLES]
        next_table([table for table in tables if table.row_count and table.is_on_screen], event)

    def _row(self) -> Row | None:
        """The batch that the cursor is on."""
        at = self._table(FRONTIER).cursor_row
        return self._rows[min(at, len(self._rows) - 1)] if self._rows else None

    def _show_behind(self) -> None:
        """The operators of the chosen batch, and the calculation of the chosen line."""
        for name in TABLES:
            self._table(name).show_cursor = name == self._current
        row = self._row()
        for name, table in zip((DECODE, PREFILL), operator_tables(row), strict=True):
            place = name.removeprefix("estimate-")
            self._show_card(place, bool(table.rows))
            self.query_one(f"#card-{place}").border_title = table.title
            self._table(name).show(table)
        shown = self._explained()
        self.query_one(Derivation).show(shown.title, shown.terms, remark=shown.remark, note=shown.note)

    def _explained(self) -> Explained:
        answer, at = self._answer, self._table(self._current).cursor_row
        if answer is None:
            return Explained(title="")
        if self._current == DEVICES:
            return explained_device(self._devices, at)
        row = self._row()
        if self._current == FRONTIER or row is None:
            return explained_row(answer, row)
        return explained_operator(answer, row, at, prefill=self._current == PREFILL)

    # --- editing ------------------------------------------------------------------------------------------

    @on(ServingForm.Edited)
    def _edited(self, event: ServingForm.Edited) -> None:
        event.stop()
        if self._state is not None:
            self._state = replace(self._state, serving=event.serving)
            self.post_message(StateEdited(self._state, self))

    # --- what the app asks for ----------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """The table with the cursor, then the others."""
        made = {name: table for name in TABLES if (table := self._table(name).table) is not None and table.rows}
        first = [made.pop(self._current)] if self._current in made else []
        return (*first, *made.values())

    def export_markdown(self) -> str:
        """The sentence, the tables, the plot as text, the notes."""
        return "# Estimate\n" if self._state is None else estimate_markdown(self._state)

    def command_line(self) -> str:
        """``kvscope estimate …``"""
        return "" if self._state is None else estimate_command(self._state.study, self._state.serving)

    def _show_card(self, name: str, shown: bool) -> None:
        """An empty card is hidden, and a focused widget in it loses the focus."""
        place, focused = self.query_one(f"#card-{name}"), self.screen.focused
        place.set_class(not shown, "-nothing")
        if not shown and focused is not None and place in focused.ancestors:
            self.call_after_refresh(self.keep_focus)

    def _table(self, name: str) -> CalcTable:
        return self.query_one(f"#{name}", CalcTable)
