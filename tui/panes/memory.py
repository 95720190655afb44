"""The Memory pane: the assignment's table, the components, tensor parallelism, and the calculation of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Static

from calc.commands.notes import memory_notes
from calc.commands.tables import Table, answer_table, component_table, derivation_table, tp_table
from calc.fit.memory import MemoryReport
from calc.servers.records import ServerReport
from tui.form.command_line import memory_command
from tui.form.state import Analysis, AppState, with_policy
from tui.panes.base import Pane, StateEdited
from tui.views.behind import Behind, behind_answer, behind_component, behind_tp
from tui.views.layer_map import MARKS as LAYER_MARKS
from tui.views.layer_map import behind_kind, kinds_table, layer_map
from tui.views.memory import memory_markdown, steps_grid
from tui.views.server import MARKS, behind_part, defaults, parts_table
from tui.views.what_if import batch_by_context, batch_by_format, behind_context, behind_format
from tui.widgets.cached_static import CachedStatic
from tui.widgets.card import card
from tui.widgets.data_table import CalcTable
from tui.widgets.derivation import Derivation
from tui.widgets.layer_strip import LayerStrip
from tui.widgets.notes import Notes
from tui.widgets.parts_bar import PartsBar
from tui.widgets.server_form import ServerForm

HELP = """\
Select a row with ↑ ↓ or the mouse to see its calculation: the formula, the numbers in it, and the result. ↓ on the
last row of a table moves to the next table. Tab moves to the calculation, which scrolls with ↑ ↓.

Tensor parallelism is shown under two rules. Equal split divides weights and cache by TP, as in the assignment. Whole
heads is what servers do: each GPU holds whole KV heads, and copies of them if TP exceeds their number. A row that no
server can run is struck through, with the reason. The last two tables show what else would fit; ◂ marks the current
case."""

TP_HEADINGS = (
    "\nTP",
    "Equal split\nweights/GPU",
    "\nKV/req",
    "\nbatch",
    "Whole heads\nweights/GPU",
    "\nKV/req",
    "\nbatch",
    "\nremark",
)
REMARK = 7
WIDE_ENOUGH = 180
PARTS, ANSWER, LAYERS, TP, COMPONENTS, CONTEXTS, FORMATS = TABLES = (
    "table-parts",
    "table-answer",
    "table-layers",
    "table-tp",
    "table-components",
    "table-contexts",
    "table-formats",
)
NO_PARTS = Table(title="Parts", columns=("Part",), rows=())
NO_LAYERS = Table(title="Layers", columns=("Kind",), rows=())


def layers_table(report: MemoryReport) -> Table:
    """The legend of the layer map; empty where all layers are alike."""
    found = layer_map(report.study)
    return NO_LAYERS if found is None else kinds_table(found)


def behind_layers(report: MemoryReport, row: int) -> Behind:
    """The steps of a row of `layers_table`."""
    found = layer_map(report.study)
    return Behind(title="Layers", terms=()) if found is None else behind_kind(found, row)


EXPLAIN: Mapping[str, Callable[[MemoryReport, int], Behind]] = {
    ANSWER: behind_answer,
    LAYERS: behind_layers,
    TP: behind_tp,
    COMPONENTS: behind_component,
    CONTEXTS: behind_context,
    FORMATS: behind_format,
}
BUILD: Mapping[str, Callable[[MemoryReport], Table]] = {
    ANSWER: answer_table,
    LAYERS: layers_table,
    TP: tp_table,
    COMPONENTS: component_table,
    CONTEXTS: batch_by_context,
    FORMATS: batch_by_format,
}


def _launch(server: ServerReport) -> str:
    from calc.servers.launch import launch_command

    return launch_command(server)


class MemoryPane(Pane):
    """Tables at the left, the selected row's calculation at the right."""

    TITLE = "Memory"
    HELP: ClassVar[str] = HELP

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._report: MemoryReport | None = None
        self._state: AppState | None = None
        self._server: ServerReport | None = None
        self._current = ANSWER

    def compose(self) -> ComposeResult:
        yield ServerForm()
        with Horizontal(id="memory-main"):
            yield from self._columns()

    def _columns(self) -> ComposeResult:
        with VerticalScroll(id="memory-tables", can_focus=False):
            yield card("", PartsBar(id="memory-parts"), CalcTable(id=PARTS, marks=MARKS), id="card-parts")
            yield card("Memory", CalcTable(id=ANSWER))
            yield card(
                "Layers", LayerStrip(id="memory-layers"), CalcTable(id=LAYERS, marks=LAYER_MARKS), id="card-layers"
            )
            yield card("Tensor parallelism", CalcTable(id=TP, headings=TP_HEADINGS), Static(id="tp-remarks"))
            yield card("Parameters", CalcTable(id=COMPONENTS))
            yield card("Largest batch by context", CalcTable(id=CONTEXTS))
            yield card("Largest batch by storage format", CalcTable(id=FORMATS))
        with VerticalScroll(id="memory-behind"):
            yield card("Calculation", Derivation(id="derivation"), id="card-derivation")
            yield card("Launch command (^l to copy)", CachedStatic(id="memory-launch"), id="card-launch")
            yield card("Notes", Notes(id="memory-notes"), id="card-memory-notes")
            yield card("Every step", CachedStatic(id="memory-steps"), id="card-steps")

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Fill the tables; the selected row stays selected."""
        self._report, self._state = analysis.memory, state
        report = analysis.memory
        self._show_server(state, analysis)
        for name, build in BUILD.items():
            if name != TP:
                self._table(name).show(build(report))
        found = layer_map(report.study)
        self.query_one("#memory-layers", LayerStrip).show(found)
        self.query_one("#card-layers").display = found is not None
        if found is None and self._current == LAYERS:
            self._leave(LAYERS)
        self._show_tp(tp_table(report))
        own = memory_notes(report)
        self.query_one("#memory-notes", Notes).show((*self._server_notes(), *own))
        self.query_one("#memory-steps", CachedStatic).show(report.steps, lambda _: steps_grid(report))
        self._show_behind()

    def _show_server(self, state: AppState, analysis: Analysis) -> None:
        """The parts of a device under a server, and the command that starts it; nothing under a plain rule."""
        found = analysis.server
        self._server = server = None if found is None else found.report
        form = self.query_one(ServerForm)
        form.show(state.policy, state.server, problem=found.problem if found else "")
        form.show_defaults({} if server is None else defaults(server))
        self.query_one("#card-parts").display = server is not None
        self.query_one("#memory-parts", PartsBar).show(server)
        self._table(PARTS).show(NO_PARTS if server is None else parts_table(server))
        if server is not None:
            self.query_one("#card-parts").border_title = parts_table(server).title
        elif self._current == PARTS:
            self._leave(PARTS)
        command = "" if server is None else _launch(server)
        self.query_one("#card-launch").display = bool(command)
        self.query_one("#memory-launch", CachedStatic).show(command, lambda _: command)

    def _leave(self, name: str) -> None:
        """The table `name` is gone: its cursor goes to the answer."""
        self._current = ANSWER
        if self._table(name).has_focus:
            self._table(ANSWER).focus()

    def _server_notes(self) -> tuple[str, ...]:
        if self._server is None:
            return ()
        from tui.views.server import server_notes

        return server_notes(self._server)

    @on(ServerForm.Edited)
    def _policy_edited(self, event: ServerForm.Edited) -> None:
        """Another policy, or other options of the server."""
        event.stop()
        if self._state is None:
            return
        state = with_policy(self._state, event.policy)
        if event.options is not None:
            state = replace(state, server=event.options)
        self._state = state
        self.post_message(StateEdited(state, self))

    def _show_tp(self, table: Table) -> None:
        wide = self.size.width >= WIDE_ENOUGH
        remarks = [f"TP {row[0]}: {row[REMARK]}" for row in table.rows if row[REMARK]]
        skip = frozenset() if wide and remarks else frozenset({REMARK})
        self._table(TP).show(table, skip=skip)
        lines = self.query_one("#tp-remarks", Static)
        lines.update("" if wide else "\n".join(remarks))
        lines.display = bool(remarks) and not wide

    def on_resize(self) -> None:
        """Remarks are a column where there is room, else lines under the table."""
        if self._report is not None:
            self._show_tp(tp_table(self._report))

    # --- the row that is explained ------------------------------------------------------------------------

    @on(DataTable.RowHighlighted)
    def _moved(self, event: DataTable.RowHighlighted) -> None:
        if event.data_table.has_focus:
            self._current = event.data_table.id or ANSWER
            self._show_behind()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The table that has the focus is the one that is explained and copied."""
        if isinstance(event.widget, CalcTable):
            self._current = event.widget.id or ANSWER
            self._show_behind()

    @on(CalcTable.Left)
    def _next_table(self, event: CalcTable.Left) -> None:
        shown = [name for name in TABLES if self._table(name).row_count]
        if event.table.id not in shown:  # it emptied while the key was on its way
            return
        at = shown.index(event.table.id) + event.step
        if 0 <= at < len(shown):
            table = self._table(shown[at])
            table.move_cursor(row=0 if event.step > 0 else table.row_count - 1)
            table.focus()

    def behind(self) -> Behind | None:
        """The calculation behind the selected row."""
        if self._report is None:
            return None
        row = self._table(self._current).cursor_row
        if self._current == PARTS:
            return None if self._server is None else behind_part(self._server, row)
        return EXPLAIN[self._current](self._report, row)

    def _show_behind(self) -> None:
        for name in TABLES:
            self._table(name).show_cursor = name == self._current
        shown = self.behind()
        if shown is not None:
            self.query_one(Derivation).show(shown.title, shown.terms, remark=shown.remark, note=shown.note)

    # --- what the app asks for ----------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """All tables, the one with the cursor first, then the calculation of its row."""
        if self._report is None:
            return ()
        built = {name: build(self._report) for name, build in BUILD.items()}
        if self._server is not None:
            built = {PARTS: parts_table(self._server), **built}
        others = [table for name, table in built.items() if name != self._current and table.rows]
        first = built.get(self._current, built[ANSWER])
        return (first, *others, derivation_table(self._report.steps))

    def export_markdown(self) -> str:
        """The whole memory answer as a document."""
        return "" if self._report is None else memory_markdown(self._report)

    def command_line(self) -> str:
        """``kvscope memory …``"""
        return (
            ""
            if self._report is None
            else memory_command(self._report.study, None if self._state is None else self._state.server)
        )

    def first_focus(self) -> CalcTable:
        """Where the keyboard starts."""
        return self._table(self._current)

    def _table(self, name: str) -> CalcTable:
        return self.query_one(f"#{name}", CalcTable)
