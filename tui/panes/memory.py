"""The Memory pane: the assignment's table, the components, tensor parallelism, and the calculation of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Static

from calc.commands.headline import asked_notes, asked_steps, asked_table
from calc.commands.tables import Row, Table, component_table, derivation_table, tp_table
from calc.fit.memory import MemoryReport
from calc.servers.records import ServerReport
from tui.form.command_line import memory_command
from tui.form.state import Analysis, AppState, with_policy, with_server
from tui.panes.base import Pane, StateEdited
from tui.views.batches import batch_by_context, batch_by_format
from tui.views.layer_map import MARKS as LAYER_MARKS
from tui.views.layer_map import kinds_table, layer_map
from tui.views.memory import memory_markdown, steps_grid
from tui.views.rule import Rule, rule_of
from tui.views.server import MARKS, defaults, parts_table
from tui.widgets.cached_static import CachedStatic
from tui.widgets.card import card
from tui.widgets.data_table import CalcTable, next_table
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
server can run is struck through, with the reason. The last two tables show what else would fit under the chosen rule
or server: ◂ marks the current case, – means that no request fits, ✗ that the rule cannot split the model that way."""

PARTS, PLACES, ANSWER, LAYERS, TP, COMPONENTS, CONTEXTS, FORMATS = TABLES = (
    "table-parts",
    "table-places",
    "table-answer",
    "table-layers",
    "table-tp",
    "table-components",
    "table-contexts",
    "table-formats",
)
NO_PARTS = Table(title="Parts", columns=("Part",), rows=())
NO_PLACES = Table(title="Devices and host", columns=("Place",), rows=())
NO_LAYERS = Table(title="Layers", columns=("Kind",), rows=())


def layers_table(report: MemoryReport) -> Table:
    """The legend of the layer map; empty if all layers are alike."""
    found = layer_map(report.study)
    return NO_LAYERS if found is None else kinds_table(found)


BUILD: Mapping[str, Callable[[MemoryReport], Table]] = {
    ANSWER: asked_table,
    LAYERS: layers_table,
    TP: tp_table,
    COMPONENTS: component_table,
}
BY_RULE: Mapping[str, Callable[[Rule], Table]] = {CONTEXTS: batch_by_context, FORMATS: batch_by_format}


def _built(state: AppState, report: MemoryReport) -> dict[str, Table]:
    """The tables by name: those of the report, then those of the chosen rule."""
    rule = rule_of(state)
    by_rule = {name: build(rule) for name, build in BY_RULE.items()}
    return {name: build(report) for name, build in BUILD.items()} | by_rule


def _launch(server: ServerReport) -> str:
    from tui.views.placement import launch_words

    return launch_words(server)


def _places(server: ServerReport) -> Table:
    from calc.commands.llamacpp import placement_table

    return placement_table(server)


class MemoryPane(Pane):
    """Tables on the left, the selected row's calculation on the right."""

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
            yield card("Devices and host", CalcTable(id=PLACES), id="card-places")
            yield card("Memory", CalcTable(id=ANSWER))
            yield card(
                "Layers", LayerStrip(id="memory-layers"), CalcTable(id=LAYERS, marks=LAYER_MARKS), id="card-layers"
            )
            yield card("Tensor parallelism", CalcTable(id=TP), Static(id="tp-remarks"))
            yield card("Parameters", CalcTable(id=COMPONENTS))
            yield card("", CalcTable(id=CONTEXTS), id=f"card-{CONTEXTS}")
            yield card("", CalcTable(id=FORMATS), id=f"card-{FORMATS}")
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
        built = _built(state, report)
        for name, table in built.items():
            self._table(name).show(table)
        for name in BY_RULE:
            self.query_one(f"#card-{name}").border_title = built[name].title
        self._show_remarks()
        found = layer_map(report.study)
        self.query_one("#memory-layers", LayerStrip).show(found)
        self.query_one("#card-layers").display = found is not None
        if found is None and self._current == LAYERS:
            self._leave(LAYERS)
        own = asked_notes(report)
        self.query_one("#memory-notes", Notes).show((*self._server_notes(), *own))
        self.query_one("#memory-steps", CachedStatic).show(asked_steps(report), lambda _: steps_grid(report))
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
        self._show_places(server)
        command = "" if server is None else _launch(server)
        self.query_one("#card-launch").display = bool(command)
        self.query_one("#memory-launch", CachedStatic).show(command, lambda _: command)

    def _show_places(self, server: ServerReport | None) -> None:
        """What llama.cpp puts on each device and on the host."""
        placed = server is not None and bool(server.devices)
        self.query_one("#card-places").display = placed
        self._table(PLACES).show(_places(server) if server is not None and placed else NO_PLACES)
        if not placed and self._current == PLACES:
            self._leave(PLACES)

    def _leave(self, name: str) -> None:
        """The table `name` has disappeared: the cursor goes to the answer."""
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
            state = with_server(state, event.options)
        self._state = state
        self.post_message(StateEdited(state, self))

    def _show_remarks(self) -> None:
        """Show what has no column below the table."""
        table, lines = self._table(TP), self.query_one("#tp-remarks", Static)
        rows = () if table.table is None else table.table.rows
        said = [f"TP {row[0]}: {row[-1]}" for row in rows if row[-1]] if table.left_out else []
        lines.update("\n".join(said))
        lines.display = bool(said)

    def on_resize(self) -> None:
        """Remarks are a column if there is room, else lines below the table."""
        self.call_after_refresh(self._show_remarks)

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
        next_table([table for name in TABLES if (table := self._table(name)).row_count], event)

    def row(self) -> Row | None:
        """The row that is explained."""
        return self._table(self._current).row

    def _show_behind(self) -> None:
        for name in TABLES:
            self._table(name).show_cursor = name == self._current
        row = self.row()
        if row is not None:
            self.query_one(Derivation).show(row.title, row.terms, remark=row.remark, note=row.note)

    # --- what the app asks for ----------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """All tables, the one with the cursor first, then the calculation of its row."""
        if self._report is None or self._state is None:
            return ()
        built = _built(self._state, self._report)
        if self._server is not None:
            places = {PLACES: _places(self._server)} if self._server.devices else {}
            built = {PARTS: parts_table(self._server), **places, **built}
        others = [table for name, table in built.items() if name != self._current and table.rows]
        first = built.get(self._current, built[ANSWER])
        return (first, *others, derivation_table(asked_steps(self._report)))

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
        """Where the focus starts."""
        return self._table(self._current)

    def _table(self, name: str) -> CalcTable:
        return self.query_one(f"#{name}", CalcTable)
