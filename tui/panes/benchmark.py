"""The Benchmark tab: is the engine correct, what does the cache gain, what does a batch or a format cost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Button, Input, Label, ProgressBar, Static

from calc.commands.render import as_markdown
from calc.commands.tables import Table
from engine.errors import EngineError
from engine.measure.kinds.formats import Formats
from engine.records import Event, Request
from engine.text import plural
from tui.charts.chart_text import draw
from tui.form.sampling import DTYPE_CHOICES, DTYPE_HELP, TP_CHOICES, TP_HELP, read_path, read_repeats
from tui.form.state import Analysis, AppState
from tui.live.engine_link import engine_of
from tui.live.formats import Effects
from tui.live.measured import PRESENTATIONS
from tui.live.measurement import Job
from tui.live.presentation import DialField, Line, Presentation, Side, TextField
from tui.live.result_text import machine_text
from tui.panes.base import Pane
from tui.widgets.dial import Dial
from tui.widgets.measurement_form import MeasurementForm
from tui.widgets.option import Option
from tui.widgets.plot import PlotView
from tui.widgets.table_view import TableView

SHARED: tuple[Line, ...] = (
    (TextField(name="model", label="model  ", read=read_path, placeholder="bundled model"),),
    (
        TextField(name="repeats", label="repeats", read=read_repeats, text="5", width=5),
        DialField(name="dtype", label="dtype", choices=DTYPE_CHOICES, value="auto", help=DTYPE_HELP),
        DialField(name="tp", label="tp", choices=TP_CHOICES, value="1", help=TP_HELP, take=int),
    ),
)
"""The inputs of all measurements of one model; a measurement uses those that its request has."""
SIDES: dict[Side, str] = {"evaluation": "#benchmark-evaluation", "model": "#benchmark-sweep"}


def _views(side: Side) -> list[Presentation]:
    """One presentation per view of a side."""
    return list({p.view: p for p in reversed(PRESENTATIONS.values()) if p.side == side}.values())[::-1]


def _key_help() -> str:
    lines = [f"{p.key} {p.button}: {p.help}" for p in PRESENTATIONS.values() if p.key]
    rest = (
        "F9 or m lists the models on this machine. Esc stops. On a narrow screen, ^n or p turns the page. Leave a "
        "path empty to use the bundled file. The bar shows the worst error on a logarithmic scale up to the "
        "tolerance."
    )
    return "\n\n".join([*lines, rest])


def _keys() -> list[BindingType]:
    return [Binding(p.key, f"start('{p.name}')", p.button, tooltip=p.hint) for p in PRESENTATIONS.values() if p.key]


class BenchmarkPane(Pane):
    """One job at a time; the last of each view stays on screen."""

    TITLE: ClassVar[str] = "Benchmark"
    OF_STATE: ClassVar[bool] = False
    HELP: ClassVar[str] = _key_help()
    BINDINGS: ClassVar[list[BindingType]] = [
        *_keys(),
        Binding("f9", "pick_model", "model", tooltip="Choose the model to measure from those on this machine"),
        Binding("m", "pick_model", "model", show=False),
        Binding("escape", "stop", "stop", tooltip="Stop and keep what was measured"),
        Binding("ctrl+n", "next_page", "page", tooltip="Evaluation or measurements, on a narrow screen"),
        Binding("p", "next_page", "page", show=False),
        Binding("pageup", "scroll_page(-1)", "scroll", show=False),
        Binding("pagedown", "scroll_page(1)", "scroll", show=False),
    ]

    def __init__(self, effects: Effects, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        """`effects` receives the formats measured here, for the Generate tab."""
        super().__init__(id=id, classes=classes)
        self._effects = effects
        self.job: Job | None = None
        self.jobs: dict[str, Job] = {}
        """The latest job of each view."""
        self.finished: dict[str, Job] = {}
        """The latest job with a result of each measurement."""
        self._request_id: int | None = None
        self._seen = False

    def compose(self) -> ComposeResult:
        with Horizontal(id="benchmark-buttons"):
            for p in PRESENTATIONS.values():
                yield Button(f"{p.button}  {p.key}".rstrip(), id=f"start-{p.name}", compact=True)
            yield Button("stop  esc", id="stop", compact=True, disabled=True)
        with Horizontal(id="benchmark-line"):
            yield ProgressBar(id="benchmark-progress", show_eta=False, show_percentage=False)
            yield Label("", id="benchmark-status", markup=False)
        with Horizontal(id="benchmark-main"):
            with VerticalScroll(id="benchmark-evaluation", can_focus=False):
                yield MeasurementForm("evaluation", (), _views("evaluation"))
                yield Static("", id="verdict", markup=False)
                yield from self._compose_views("evaluation")
            with VerticalScroll(id="benchmark-sweep", can_focus=False):
                yield MeasurementForm("model", SHARED, _views("model"))
                yield from self._compose_views("model")
                yield Static("", id="notes", markup=False)

    def _compose_views(self, side: Side) -> ComposeResult:
        for p in _views(side):
            yield TableView(id=f"table-{p.view}")
            if p.chart is not None:
                yield PlotView(p.chart(None), id=f"plot-{p.view}")

    def on_mount(self) -> None:
        self.query_one(ProgressBar).display = False
        self._refresh()

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Nothing here depends on the study; a new marker or theme redraws the plot."""
        for plot in self.query(PlotView):
            plot.refresh()

    def first_focus(self) -> Widget:
        """Focus the first button, so that letter keys work."""
        return self.query_one("#benchmark-buttons Button")

    # --- starting -----------------------------------------------------------------------------------------

    def action_start(self, name: str) -> None:
        """Start a measurement by its name."""
        self.start(name)

    def action_pick_model(self) -> None:
        """Choose the model of the right side."""
        from tui.widgets.model_files import pick_model_file

        option = self.query_one("#option-model-model", Option)
        self.add_class("-sweep")
        pick_model_file(self.app, option.text, self._take_model)

    def _take_model(self, model: str) -> None:
        self.query_one("#option-model-model", Option).text = model

    def action_stop(self) -> None:
        """Stop the job."""
        engine_of(self.app).cancel(self._request_id)

    def on_button_pressed(self, message: Button.Pressed) -> None:
        """Buttons do the same as their keys."""
        message.stop()
        name = (message.button.id or "").removeprefix("start-")
        if name in PRESENTATIONS:
            self.start(name)
        else:
            self.action_stop()

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Enter in a field starts the job it belongs to."""
        message.stop()
        form = next((p for p in PRESENTATIONS.values() if message.input in self.query(f".form-{p.view} Input")), None)
        self.start("benchmark" if form is None else form.name)

    @property
    def running(self) -> bool:
        """Whether a job is running."""
        return self.job is not None and not self.job.over

    def start(self, name: str) -> None:
        """Start a measurement, unless one is running or the form is invalid."""
        if self.running:
            self._say(f"{self.job.name if self.job else ''} is running: press Esc to stop it")
            return
        presentation = PRESENTATIONS[name]
        request = self._request(presentation)
        if isinstance(request, str):
            self._say(f"✗ {request}", problem=True)
            return
        self.job = self.jobs[presentation.view] = Job(request, model=engine_of(self.app).status.model)
        self.set_class(presentation.side == "model", "-sweep")
        self._put_first(presentation)
        try:
            self._request_id = engine_of(self.app).submit(request, self._on_events)
        except EngineError as error:
            self.job.fail(error.message)
        self._refresh()

    def _put_first(self, presentation: Presentation) -> None:
        """On the right, the last started job comes first."""
        if presentation.side == "model":
            side = self.query_one(SIDES["model"])
            views = [*side.query(f"#table-{presentation.view}, #plot-{presentation.view}")]
            for view in reversed(views):
                side.move_child(view, before=side.query("TableView, PlotView").first())

    def _request(self, presentation: Presentation) -> Request | str:
        """The request the form stands for, or what is wrong with it."""
        form = self.query_one(f"{SIDES[presentation.side]} MeasurementForm", MeasurementForm)
        return form.request(presentation)

    # --- a job's events -----------------------------------------------------------------------------------

    def _on_events(self, batch: Sequence[Event]) -> None:
        """A tick's events of our job."""
        if self.job is None:
            return
        self.job.feed(batch)
        if self.job.result is not None:
            self.finished[self.job.name] = self.job
        if isinstance(self.job.request, Formats):  # the Generate tab shows them too
            self._effects.take_formats(self.job.request, batch)
        if self._seen or self.job.over:
            self._refresh()

    def on_show(self) -> None:
        """Back on screen: show what arrived meanwhile."""
        self._seen = True
        self._refresh()

    def on_hide(self) -> None:
        """Off screen: keep the data, paint nothing."""
        self._seen = False

    def _refresh(self) -> None:
        self._show_running()
        self._show_progress()
        self._show_verdict()
        for presentation in (*_views("evaluation"), *_views("model")):
            self._show_view(presentation)
        self._show_notes()

    def _show_running(self) -> None:
        """Update buttons and keys. The focus stays on a button that can be pressed."""
        stop = self.query_one("#stop", Button)
        if stop.disabled != self.running:
            return
        focused = self.screen.focused
        for button in self.query(Button):
            button.disabled = self.running != (button is stop)
        if isinstance(focused, Button) and focused in self.query(Button):
            self._focus_button(stop if self.running else self.query_one("#benchmark-buttons Button", Button))
        self.app.refresh_bindings()

    def _focus_button(self, button: Button) -> None:
        """Scroll to the button's end of the line: scrolling by its region would leave the other button in view if a run
        ends at once."""
        line = self.query_one("#benchmark-buttons")
        button.focus(scroll_visible=False)
        (line.scroll_end if button.id == "stop" else line.scroll_home)(animate=False)

    def _show_progress(self) -> None:
        bar, job = self.query_one(ProgressBar), self.job
        bar.display = self.running
        if job is None:
            keys = [p.key for p in PRESENTATIONS.values() if p.key]
            self._say(
                f"Press {', '.join(keys[:-1])} or {keys[-1]} to start; leave a path empty to use the bundled files"
            )
        elif job.over:
            self._say(f"{job.name}: {job.outcome}", problem=job.failed)
        elif job.progress is None:
            bar.update(total=None)
            self._say(f"{job.name}: waiting for the engine ({engine_of(self.app).status.line})")
        else:
            bar.update(total=job.progress.total or None, progress=job.progress.done)
            self._say(f"{job.name}: {job.progress_line}")

    def _show_verdict(self) -> None:
        job, verdict = self.jobs.get("evaluate"), self.query_one("#verdict", Static)
        if job is None:
            verdict.update("Press e or k to compare the bundled model with its expected logits.")
            return
        verdict.update("\n".join([job.outcome or f"▶ {plural(len(job.rows), 'case')} so far", *job.notes]))
        verdict.set_class(job.failed, "-problem")
        verdict.set_class(job.over and not job.failed, "-good")

    def _show_view(self, presentation: Presentation) -> None:
        """The table and the chart of one view. Until there is a job, the first view of a side shows an empty chart."""
        job = self.jobs.get(presentation.view)
        table = self.query_one(f"#table-{presentation.view}", TableView)
        table.display = job is not None and bool(job.rows)
        if job is not None:
            table.show(job.table)
        if presentation.chart is not None:
            plot = self.query_one(f"#plot-{presentation.view}", PlotView)
            waiting = not self._measured() and presentation is _views(presentation.side)[0]
            plot.display = waiting or (job is not None and (bool(job.rows) or job is self.job))
            plot.show(presentation.chart(job))

    def _measured(self) -> list[Job]:
        """The latest jobs of the right side, in the order in which they are offered."""
        return [self.jobs[p.view] for p in _views("model") if p.view in self.jobs]

    def _show_notes(self) -> None:
        """The notes on the latest measurement on the right."""
        measured = self._measured()
        latest = self.job if self.job in measured else next(iter(measured), None)
        lines = latest.notes if latest is not None else []
        if latest is not None and latest.result is not None:
            lines.append(f"Measured on {machine_text(latest.result.machine)}.")
        self.query_one("#notes", Static).update("\n".join(lines))

    def _say(self, text: str, *, problem: bool = False) -> None:
        label = self.query_one("#benchmark-status", Label)
        label.update(text)
        label.set_class(problem or text.startswith("✗"), "-problem")

    def on_option_edited(self, message: Option.Edited) -> None:
        """Say at once what is wrong with an option."""
        message.stop()
        if problem := self.problem():
            self._say(f"✗ {problem}", problem=True)
        else:
            self._show_progress()

    def on_dial_changed(self, message: Dial.Changed) -> None:
        """A dtype for the next job."""
        message.stop()

    def action_next_page(self) -> None:
        """On a narrow screen: the evaluation, or the sweep."""
        self.toggle_class("-sweep")

    def action_scroll_page(self, by: int) -> None:
        """Scroll the pane by one screen."""
        for body in self.query(VerticalScroll):
            body.scroll_relative(y=by * max(1, body.size.height - 2), animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Start only when nothing runs, stop only what runs; pages exist on narrow screens only."""
        if action == "stop":
            return self.running
        if action == "start":
            return not self.running
        if action == "next_page":
            return self.screen.has_class("-narrow")
        return True

    # --- documents ----------------------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """The last of each view, the latest job first."""
        jobs = [*self._measured(), *(self.jobs[p.view] for p in _views("evaluation") if p.view in self.jobs)]
        return tuple(job.data_table for job in sorted(jobs, key=lambda job: job is not self.job) if job.rows)

    def export_markdown(self) -> str:
        """The measurements: tables, verdict, plots, notes and the machine."""
        parts = ["# Evaluation and benchmark", *(as_markdown(table) for table in self.tables())]
        if "evaluate" in self.jobs:
            parts.append(self.jobs["evaluate"].outcome)
        jobs = self._measured()
        parts += [f"```text\n{chart}\n```" for job in jobs for chart in _drawn(job)]
        parts += [f"- {note}" for job in jobs for note in job.notes]
        if results := [job.result for job in jobs if job.result is not None]:
            parts.append(f"Measured on {machine_text(results[-1].machine)}.")
        return "\n\n".join(parts) + "\n"

    def problem(self) -> str:
        """The first option that cannot be read."""
        return next((form.problem for form in self.query(MeasurementForm) if form.problem), "")

    def command_line(self) -> str:
        """The command of the latest job as the form stands now; of the sweep before there is one."""
        presentation = self.job.presentation if self.job else PRESENTATIONS["benchmark"]
        request = self._request(presentation)
        if isinstance(request, str):
            request = self.job.request if self.job else presentation.measurement.request()
        measurement = presentation.measurement
        return shlex.join(["kvscope", measurement.name, *measurement.words(request)])


def _drawn(job: Job) -> Iterator[str]:
    """The chart of a job as text, if it has one and something was measured."""
    if job.presentation.chart is not None and job.rows:
        yield draw(job.presentation.chart(job), width=96, height=24)
