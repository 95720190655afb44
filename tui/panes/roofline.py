"""The Roofline pane: the operators of a step under the device's roofline, and where the limiting resource changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import DataTable, Label, Static

from calc.commands.tables import Table
from tui.form.command_line import step_command
from tui.form.state import Analysis, AppState
from tui.live.engine_link import EngineStatus, engine_of
from tui.panes.base import StateEdited, collected
from tui.panes.pages import NEXT_PAGE, PICK_DEVICE, PagedPane
from tui.views.roofline import (
    PHASES,
    Crossings,
    StepView,
    crossing_sentences,
    crossings_of,
    explained_step,
    roofline_chart,
    roofline_markdown,
    step_table,
    step_view,
    with_own,
)
from tui.widgets.card import card
from tui.widgets.data_table import CalcTable
from tui.widgets.derivation import Derivation
from tui.widgets.dial import Dial, NumberDial
from tui.widgets.roofline_plot import RooflinePlot
from tui.widgets.slider import Slider

HELP = """\
A roofline: FLOP/s against FLOPs per byte. The slope is the device's memory bandwidth; the flat roofs are its peaks by
data type. Small letters are operators of a decode step, capitals those of a prefill; ○ and ◇ are whole passes. An
operator under the slope is limited by memory, one under a flat roof by arithmetic, one far below both by its launch
overhead.

In the plot ← → halve or double the batch, ↑ ↓ the context; drag it, or drag the scales, or type a number into one. ┿
on a scale marks where the limiting resource changes. s: show decode or prefill in the table and in front. In the
table, ↑ ↓ select an operator; its time is derived beside it. d chooses another device. Points are estimates. If this
machine is the device, measured values are drawn over them as ●: products timed by kvscope machine, and steps, prompts
and layers of the loaded model, timed after a run in the Generate tab."""

SETTLE_S = 0.05
"""How long an edit waits for the next one before the crossings are searched."""


class RooflinePane(PagedPane):
    """Two scales with their marks, the plot, the table of a pass, and the calculation of its selected row."""

    TITLE: ClassVar[str] = "Roofline"
    HELP: ClassVar[str] = HELP
    PAGES = ("plot", "operators")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "other_phase", "phase", tooltip="Show the operators of decode, or of prefill"),
        PICK_DEVICE,
        *NEXT_PAGE,
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._state: AppState | None = None
        self._view: StepView | None = None
        self._phase = PHASES[0]
        self._held = (1, 1)
        self.is_settled = False
        """Whether everything that follows from the state is shown."""

    def compose(self) -> ComposeResult:
        yield Slider(
            "batch",
            32,
            minimum=1,
            maximum=2**16,
            unit="",
            help="Sequences per step: decode computes one token for each, prefill computes all their prompts",
            id="step-batch",
        )
        yield Slider(
            "context",
            2048,
            minimum=1,
            maximum=2**20,
            unit="",
            help="Tokens per sequence: those that decode attends to, and those of the prompt",
            id="step-context",
        )
        yield Label("", id="roofline-problem", markup=False)
        yield Static(id="roofline-crossings", markup=False)
        yield self.page_label()
        with Horizontal(id="roofline-main"):
            yield card("", RooflinePlot(id="roofline-plot"), id="card-roofline")
            with Horizontal(id="roofline-tables", classes="page-1"):
                yield card("Operators", CalcTable(id="roofline-operators"), id="card-operators")
                with VerticalScroll(id="roofline-behind"):
                    yield card("Calculation", Derivation(id="roofline-derivation"), id="card-roofline-derivation")

    def on_mount(self) -> None:
        plot = self.query_one("#card-roofline")
        plot.add_class("page-0")
        plot.border_subtitle = "← → batch · ↑ ↓ context · or drag"
        self.show_page(0)
        engine_of(self.app).watch(self._engine_changed)

    def first_focus(self) -> Widget:
        """The plot, so that arrow keys move its points at once."""
        return self.query_one(RooflinePlot if self.page == 0 else CalcTable)

    # --- what is shown ------------------------------------------------------------------------------------

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Show the passes of `state` at once; the crossings are searched afterwards."""
        self._state = state
        self.query_one("#step-batch", Slider).value = state.step_batch
        self.query_one("#step-context", Slider).value = state.step_context
        self._view = view = with_own(step_view(state), engine_of(self.app).status)
        self._show_plot()
        self._show_table()
        self.is_settled = False
        self._look_for_crossings(view)

    def _engine_changed(self, status: EngineStatus) -> None:
        """Called when another model is loaded, or its operators were timed."""
        if self._view is not None and (view := with_own(self._view, status)) != self._view:
            self._view = view
            self._show_plot()

    def _show_plot(self) -> None:
        if self._view is not None:
            self.query_one(RooflinePlot).show(roofline_chart(self._view, front=self._phase))

    def _show_table(self) -> None:
        assert self._view is not None
        table = step_table(self._view, self._phase)
        place = self.query_one("#card-operators")
        self.query_one("#roofline-tables").set_class(table is None, "-nothing")
        if table is not None:
            place.border_title = table.title
            self.query_one(CalcTable).show(table)
        self._show_behind()

    @work(group="crossings", exclusive=True)
    async def _look_for_crossings(self, view: StepView) -> None:
        await asyncio.sleep(SETTLE_S)
        found = await collected(crossings_of(view))
        self._show_crossings(view, found[-1] if found else Crossings())
        self.is_settled = True

    def _show_crossings(self, view: StepView, at: Crossings) -> None:
        batch, context = self.query_one("#step-batch", Slider), self.query_one("#step-context", Slider)
        batch.marks = tuple(filter(None, (at.batch_products, at.batch_step)))
        context.marks = tuple(filter(None, (at.context_cache, at.context_prompt)))
        words = crossing_sentences(view, at) or (f"No roofline: {view.problem}",)
        self.query_one("#roofline-crossings", Static).update("\n".join(words))

    # --- the row that is explained ------------------------------------------------------------------------

    @on(DataTable.RowHighlighted)
    def _moved(self) -> None:
        self._show_behind()

    def _show_behind(self) -> None:
        if self._view is not None:
            shown = explained_step(self._view, self._phase, self.query_one(CalcTable).cursor_row)
            place = self.query_one(Derivation)
            place.show(shown.title, shown.terms, remark=shown.remark, note=shown.note)

    # --- editing ------------------------------------------------------------------------------------------

    def on_dial_changed(self, message: Dial.Changed) -> None:
        """A scale was turned, dragged or typed into."""
        message.stop()
        self._propose(self.query_one("#step-batch", Slider).value, self.query_one("#step-context", Slider).value)

    def on_number_dial_typed(self, message: NumberDial.Typed) -> None:
        """Show at once what is wrong with the typed text."""
        message.stop()
        self.show_problem("#roofline-problem", message.dial.problem)

    @on(RooflinePlot.Moved)
    def _plot_moved(self, event: RooflinePlot.Moved) -> None:
        event.stop()
        batch, context = self.query_one("#step-batch", Slider), self.query_one("#step-context", Slider)
        if event.begins:
            self._held = batch.value, context.value
        self._propose(batch.doubled(self._held[0], event.batch), context.doubled(self._held[1], event.context))

    def _propose(self, batch: int, context: int) -> None:
        if self._state is None:
            return
        state = replace(self._state, step_batch=batch, step_context=context)
        if state != self._state:
            self._state = state
            self.post_message(StateEdited(state, self))

    def action_other_phase(self) -> None:
        """Show decode or prefill in the table and in front."""
        self._phase = PHASES[1 - PHASES.index(self._phase)]
        self._show_plot()
        self._show_table()

    # --- what the app asks for ----------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """The operators of both passes, the shown one first."""
        phases = (self._phase, PHASES[1 - PHASES.index(self._phase)])
        found = () if self._view is None else (step_table(self._view, phase) for phase in phases)
        return tuple(table for table in found if table is not None)

    def export_markdown(self) -> str:
        """The plot as text, both tables, and where the limits change."""
        if self._state is None:
            return "# Roofline\n"
        return roofline_markdown(self._state, engine_of(self.app).status)

    def command_line(self) -> str:
        """``kvscope estimate …``, which prints the operators of both passes."""
        return "" if self._state is None else step_command(self._state)
