"""What keys and the palette do besides moving between panes: copy, write, open, choose a model or device, help."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on
from textual.app import App

from calc.commands.render import as_markdown
from calc.commands.tables import Table
from calc.errors import CalcError
from calc.model.spec import ModelSpec
from engine.text import plural
from tui.form.state import Analysis, AppState
from tui.panes.base import Pane
from tui.panes.spec import SpecPane
from tui.widgets.path_bar import FileWriter, PathBar, PathRequest
from tui.widgets.picker_field import PickerField
from tui.widgets.work import work

if TYPE_CHECKING:
    from tui.report.measured_part import Measurements


class Actions(App[None]):
    """Actions of the app. `KvscopeApp` adds the screen, the state and the panes."""

    state: AppState
    analysis: Analysis
    own_folder: Path | None
    """Folder for kvscope's own files; None if it must not write any (tests)."""
    form_problem: str
    """What is wrong with the forms behind the state; "" if nothing is."""

    @abstractmethod
    def pane(self, name: str) -> Pane | None:
        """The pane called `name` ("spec"), once it is mounted."""

    @property
    @abstractmethod
    def active_pane(self) -> Pane | None:
        """The visible pane."""

    # --- help and questions -------------------------------------------------------------------------------

    def action_help(self) -> None:
        """Explain the focused widget, the pane, and the keys."""
        from tui.app.help import HelpScreen, focus_help, help_text, keys_of

        title, rows = focus_help(self.focused)
        keys = keys_of(self.screen.active_bindings.values())
        self.push_screen(HelpScreen(help_text(title, rows, self.active_pane, keys)))

    def action_questions(self) -> None:
        """Show the inverse questions over the pane."""
        from tui.views.rule import rule_of
        from tui.widgets.questions import Questions

        self.push_screen(Questions(rule_of(self.state)))

    # --- copying ------------------------------------------------------------------------------------------

    def action_copy_command(self) -> None:
        """Copy the command line that prints what the pane shows."""
        pane = self.active_pane
        if pane is None:
            return
        if problem := pane.problem() or (self.form_problem if pane.OF_STATE else ""):
            self.notify(f"There is no command to copy: {problem}.", severity="warning", markup=False)
        elif command := pane.command_line():
            self._copy(command, command)
            if pane.TITLE in ("Spec", "Memory"):
                self._say_what_is_unsaid()

    def action_copy_launch(self) -> None:
        """Copy the command that starts the chosen server."""
        from tui.views.placement import launch_words

        answer = self.analysis.server
        report = None if answer is None else answer.report
        command = "" if report is None else launch_words(report)
        if command:
            self._copy(command, command)
        elif report is not None:
            self.notify("This server does not start: there is no command to copy.", severity="warning")
        else:
            self.notify(
                "First choose a server as the policy in the Memory pane: vllm, sglang or llamacpp.", severity="warning"
            )

    def _say_what_is_unsaid(self) -> None:
        from tui.form.command_line import unsaid

        if missing := unsaid(self.state.study):
            self.notify(
                f"The command line cannot express {', '.join(missing)}. "
                "Save the spec as TOML and pass it with --model.",
                severity="warning",
            )

    def action_copy_table(self, form: str = "md") -> None:
        """Copy the table of the pane, as Markdown or tab-separated."""
        pane = self.active_pane
        tables = pane.tables() if pane is not None else ()
        if not tables:
            self.notify("This pane has no table yet.", severity="warning")
            return
        text = as_markdown(tables[0]) if form == "md" else as_tsv(tables[0])
        rows = plural(len(tables[0].rows), "row")
        self._copy(text, f"{tables[0].title}: {rows} as {'Markdown' if form == 'md' else 'TSV'}")

    def _copy(self, text: str, what: str) -> None:
        self.copy_to_clipboard(text)
        self.run_worker(work(self._copy_beside, text, what), group="copy")

    async def _copy_beside(self, text: str, what: str) -> None:
        from tui.app.clipboard import copy_beside

        where = await asyncio.to_thread(copy_beside, text, self.own_folder)
        self.notify(what, title=where, markup=False)

    # --- files --------------------------------------------------------------------------------------------

    async def action_export(self) -> None:
        """Ask for a file at the foot of the screen and write the pane to it."""
        pane = self.active_pane
        if pane is None:
            return
        await self._ask_to_write("Export to", f"kvscope-{pane.TITLE.lower()}.md", pane.export_markdown())

    async def action_report(self) -> None:
        """Ask for a file and write the whole report to it, with this session's measurements."""
        measured = self._measured()
        held = (
            "with the measurements of this session"
            if measured
            else "nothing was measured in this session, so only calculated numbers"
        )
        await self._ask_for_report(measured, hint=f"{held} · Enter to write · Esc to cancel")

    async def action_measured_report(self) -> None:
        """The same after running the evaluations, the latency sweep and a sample in a separate engine."""
        hint = "measures first (about a minute) · Enter to start · Esc to cancel"
        await self._ask_for_report(self._measured(), hint=hint, then=self._measure_report)

    def _measured(self) -> Measurements | None:
        """The measurements of the Benchmark tab so far."""
        from tui.app.report import measured_in
        from tui.panes.benchmark import BenchmarkPane

        pane = self.pane("benchmark")
        return measured_in(pane.finished) if isinstance(pane, BenchmarkPane) else None

    async def _ask_for_report(
        self, measured: Measurements | None, *, hint: str, then: Callable[[Path], None] | None = None
    ) -> None:
        async def accept(typed: str) -> str | None:
            from tui.report.command import renderer_for
            from tui.report.content import build_report

            try:
                render = renderer_for(Path(typed))
            except CalcError:
                return "The name must end in .md (Markdown) or .tex (LaTeX)."
            writer.text = render(build_report(self.state, measured))
            return await writer(typed)

        writer = FileWriter("", done=then or (lambda path: self.notify(f"Wrote {path}.", markup=False)))
        await self.query_one(PathBar).ask(PathRequest(label="Report to", value="report.md", accept=accept, hint=hint))

    def _measure_report(self, path: Path) -> None:
        """Measure in the background, then write the report with the measurements."""
        from tui.app.report import measured_report

        self.notify(f"Measuring for {path}.", markup=False)
        self.run_worker(partial(measured_report, self, self.state, path), thread=True, group="report", exclusive=True)

    async def action_save_spec(self) -> None:
        """Ask for a file and write the model to it, as TOML that can be opened again."""
        import tomli_w

        from calc.sources.toml import spec_document

        model = self.state.study.model
        name = model.name.replace("/", "-")
        await self._ask_to_write("Save spec to", f"{name}.toml", tomli_w.dumps(spec_document(model)))

    async def _ask_to_write(self, label: str, value: str, text: str) -> None:
        writer = FileWriter(text, done=lambda path: self.notify(f"Wrote {path}.", markup=False))
        hint = "Enter to write · Tab to complete · Esc to cancel"
        await self.query_one(PathBar).ask(PathRequest(label=label, value=value, accept=writer, hint=hint))

    async def action_open(self) -> None:
        """Ask for a model file."""
        hint = "a config.json, .gguf, folder or spec .toml · Enter to open · Tab to complete · Esc to cancel"
        await self.query_one(PathBar).ask(PathRequest(label="Open", value="", accept=self.open_model, hint=hint))

    async def open_model(self, name_or_path: str) -> str | None:
        """Use the model of a path or catalog name; returns a sentence if that fails, else None."""
        from calc.sources import load_model

        try:
            model = await asyncio.to_thread(load_model, name_or_path, any_storage=True)
        except CalcError as error:
            return str(error)
        self._take_model(model)
        await self.offer_weights(model)
        return None

    async def offer_weights(self, model: ModelSpec) -> None:
        """Generate runs the model whose weights were opened, unless another was chosen there."""
        from tui.panes.generate import GeneratePane

        pane = self.pane("generate")
        # In a thread, for a disk that does not answer.
        if model.stored and isinstance(pane, GeneratePane) and await asyncio.to_thread(os.path.exists, model.source):
            pane.offer_model(model.source)

    def _take_model(self, model: ModelSpec) -> None:
        spec = self.pane("spec")
        if isinstance(spec, SpecPane):
            spec.take_model(model)

    # --- picking from the catalog -------------------------------------------------------------------------

    @on(PickerField.Opened)
    def _picker_wanted(self, event: PickerField.Opened) -> None:
        event.stop()
        typed = event.picker_field.take_typed()
        if event.picker_field.field.name == "model":
            self.action_pick_model(typed)
        else:
            self.action_pick_device(typed)

    def action_pick_model(self, typed: str = "") -> None:
        """Search the catalog of models."""
        from tui.form.catalog_lists import model_list
        from tui.widgets.picker import Picker

        study = self.state.study
        current = study.model.name
        self.push_screen(Picker(model_list(study), typed=typed, current=current), self._model_picked)

    def _model_picked(self, name: str | None) -> None:
        if name:
            self.run_worker(work(self._open_picked, name), group="open", exclusive=True)

    async def _open_picked(self, name: str) -> None:
        if refusal := await self.open_model(name):
            self.notify(refusal, severity="error", markup=False)

    def action_pick_device(self, typed: str = "") -> None:
        """Search the catalog of devices."""
        from tui.form.catalog_lists import current_device, device_list
        from tui.widgets.picker import Picker

        study = self.state.study
        picker = Picker(device_list(study), typed=typed, current=current_device(study.device))
        self.push_screen(picker, self._device_picked)

    def _device_picked(self, name: str | None) -> None:
        from tui.form.catalog_lists import device_called

        spec = self.pane("spec")
        if name and isinstance(spec, SpecPane):
            spec.take_device(device_called(name, self.state.study.device))


def as_tsv(table: Table) -> str:
    """A table for a spreadsheet: tabs between cells, headings first."""
    return "\n".join("\t".join(cells) for cells in (table.headings, *table.cells))
