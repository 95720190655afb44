"""The Benchmark tab: is the engine right (evaluate, kv-evaluate), and what does the cache buy (latency sweep)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Button, Input, Label, ProgressBar, Static

from calc.render import as_markdown
from calc.tables import Table
from calc.units import format_duration_s
from engine.errors import EngineError
from engine.events import (
    Benchmark,
    BenchmarkFinished,
    BenchmarkResult,
    BenchmarkRow,
    BenchmarkRowMeasured,
    Cancelled,
    CaseEvaluated,
    CaseResult,
    EngineExited,
    Evaluate,
    EvaluationFinished,
    EvaluationResult,
    Event,
    Failed,
    Progress,
)
from tui.chart import draw
from tui.engine_link import engine_of
from tui.measured import (
    benchmark_table,
    benchmark_variants,
    evaluation_table,
    evaluation_variants,
    machine_text,
    verdict,
)
from tui.pane import Pane
from tui.plots import benchmark_chart
from tui.sampling_form import (
    DTYPE_CHOICES,
    DTYPE_HELP,
    read_atol,
    read_lengths,
    read_new_tokens,
    read_path,
    read_repeats,
)
from tui.state import Analysis, AppState
from tui.widgets.dial import ChoiceDial, Dial
from tui.widgets.option import Option
from tui.widgets.plot import PlotView
from tui.widgets.table_view import TableView

Kind = Literal["evaluate", "kv-evaluate", "benchmark"]
DEFAULT_LENGTHS = "10,50,100,500,1000"


@dataclass(slots=True)
class Job:
    """A piece of work and what has come of it. `state` is how it ended, in words; "" while it runs."""

    kind: Kind
    request: Evaluate | Benchmark
    cases: list[CaseResult] = field(default_factory=list)
    rows: list[BenchmarkRow] = field(default_factory=list)
    evaluation: EvaluationResult | None = None
    benchmark: BenchmarkResult | None = None
    progress: Progress | None = None
    state: str = ""
    failed: bool = False

    def feed(self, events: Sequence[Event]) -> None:
        """Take a batch of events."""
        for event in events:
            if isinstance(event, Progress):
                self.progress = event
            elif isinstance(event, CaseEvaluated):
                self.cases.append(event.case)
            elif isinstance(event, BenchmarkRowMeasured):
                self.rows.append(event.row)
            elif isinstance(event, EvaluationFinished):
                self.evaluation = event.result
                self.state = verdict(event.result.cases, atol=event.result.atol)
                self.failed = not event.result.passed
            elif isinstance(event, BenchmarkFinished):
                self.benchmark = event.result
                self.state = f"✓ {len(self.rows)} lengths measured, {_medians(event.result.repeats)}"
            elif isinstance(event, Cancelled):
                self.state = "stopped by you; what was measured stays"
            elif isinstance(event, Failed | EngineExited):
                self.state, self.failed = f"✗ {event.message}", True

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return bool(self.state)

    @property
    def atol(self) -> float | None:
        """The tolerance: the engine's word once it has come."""
        if self.evaluation is not None:
            return self.evaluation.atol
        return self.request.atol if isinstance(self.request, Evaluate) else None


class BenchmarkPane(Pane):
    """One job at a time; the last evaluation and the last sweep stay on screen."""

    TITLE: ClassVar[str] = "Benchmark"
    HELP: ClassVar[str] = (
        "e evaluate: the engine's logits against expected ones, case by case.\n\n"
        "k kv-evaluate: the same with the KV cache, and cached against uncached: the whole prompt at once, token by "
        "token, in chunks.\n\n"
        "s latency sweep: prompts of growing length with (●) and without (×) the cache; medians of the repeats, the "
        "same tokens in both ways.\n\n"
        "Esc stops. F8 or p turns the page on a narrow screen. Blank paths mean the bundled files. The bar shows the "
        "worst error on a logarithmic scale up to the tolerance."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "evaluate", "evaluate", tooltip="Compare logits with expected ones"),
        Binding("k", "kv_evaluate", "kv-evaluate", tooltip="The same with the KV cache"),
        Binding("s", "sweep", "sweep", tooltip="Latency against prompt length, with and without the cache"),
        Binding("escape", "stop", "stop", tooltip="Stop; what was measured stays"),
        Binding("f8", "next_page", "page", tooltip="Evaluation or sweep, on a narrow screen"),
        Binding("p", "next_page", "page", show=False),
        Binding("pageup", "scroll_page(-1)", "scroll", show=False),
        Binding("pagedown", "scroll_page(1)", "scroll", show=False),
    ]

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self.job: Job | None = None
        self.evaluation: Job | None = None
        self.sweep: Job | None = None
        self._request_id: int | None = None
        self._seen = False

    def compose(self) -> ComposeResult:
        with Horizontal(id="benchmark-buttons"):
            yield Button("evaluate  e", id="evaluate", compact=True)
            yield Button("kv-evaluate  k", id="kv-evaluate", compact=True)
            yield Button("latency sweep  s", id="sweep", compact=True)
            yield Button("stop  esc", id="stop", compact=True, disabled=True)
        with Horizontal(id="benchmark-line"):
            yield ProgressBar(id="benchmark-progress", show_eta=False, show_percentage=False)
            yield Label("", id="benchmark-status", markup=False)
        with Horizontal(id="benchmark-main"):
            with VerticalScroll(id="benchmark-evaluation", can_focus=False):
                with Vertical(classes="options"):
                    yield Option("weights", read_path, placeholder="bundled model", width=30, id="option-weights")
                    yield Option("cases  ", read_path, placeholder="bundled cases", width=30, id="option-cases")
                    with Horizontal(classes="line"):
                        yield Option("tolerance", read_atol, placeholder="for dtype", width=12, id="option-atol")
                        yield ChoiceDial(
                            "dtype", ["float64", "float32"], "float64", help=DTYPE_HELP, id="dial-evaluate-dtype"
                        )
                yield Static("", id="verdict", markup=False)
                yield TableView(id="cases")
            with VerticalScroll(id="benchmark-sweep", can_focus=False):
                with Vertical(classes="options"):
                    yield Option("model  ", read_path, placeholder="bundled model", width=30, id="option-bench-model")
                    yield Option("prompts", read_lengths, text=DEFAULT_LENGTHS, width=30, id="option-lengths")
                    with Horizontal(classes="line"):
                        yield Option("new tokens", read_new_tokens, text="40", width=6, id="option-bench-new")
                        yield Option("repeats", read_repeats, text="5", width=5, id="option-repeats")
                        yield ChoiceDial("dtype", DTYPE_CHOICES, "auto", help=DTYPE_HELP, id="dial-bench-dtype")
                yield TableView(id="rows")
                yield PlotView(benchmark_chart(()), id="plot-benchmark")
                yield Static("", id="notes", markup=False)

    def on_mount(self) -> None:
        self.query_one(ProgressBar).display = False
        self._refresh()

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Nothing here depends on the study; a new marker or theme redraws the plot."""
        self.query_one(PlotView).refresh()

    def first_focus(self) -> Widget:
        """The first button, so that the letters work."""
        return self.query_one("#evaluate")

    # --- starting -----------------------------------------------------------------------------------------

    def action_evaluate(self) -> None:
        """Evaluate without the cache."""
        self._start("evaluate")

    def action_kv_evaluate(self) -> None:
        """Evaluate with the cache as well."""
        self._start("kv-evaluate")

    def action_sweep(self) -> None:
        """Measure the latency sweep."""
        self._start("benchmark")

    def action_stop(self) -> None:
        """Stop the job."""
        engine_of(self.app).cancel(self._request_id)

    def on_button_pressed(self, message: Button.Pressed) -> None:
        """The buttons do what their keys do."""
        message.stop()
        kinds: dict[str | None, Kind] = {"evaluate": "evaluate", "kv-evaluate": "kv-evaluate", "sweep": "benchmark"}
        if message.button.id == "stop":
            self.action_stop()
        else:
            self._start(kinds[message.button.id])

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Enter in a field starts the job it belongs to."""
        message.stop()
        in_sweep = message.input in self.query_one("#benchmark-sweep").query(Input)
        self._start("benchmark" if in_sweep else "evaluate")

    @property
    def running(self) -> bool:
        """Whether a job is under way."""
        return self.job is not None and not self.job.over

    def _start(self, kind: Kind) -> None:
        if self.running:
            self._say(f"{self.job.kind if self.job else ''} is under way: Esc stops it")
            return
        request = self._request(kind)
        if isinstance(request, str):
            self._say(f"✗ {request}", problem=True)
            return
        self.job = Job(kind, request)
        if kind == "benchmark":
            self.sweep = self.job
        else:
            self.evaluation = self.job
        self.set_class(kind == "benchmark", "-sweep")
        try:
            self._request_id = engine_of(self.app).submit(request, self._on_events)
        except EngineError as error:
            self.job.state, self.job.failed = f"✗ {error.message}", True
        self._refresh()

    def _request(self, kind: Kind) -> Evaluate | Benchmark | str:
        """The request the form stands for, or what is wrong with it."""
        side = "#benchmark-sweep" if kind == "benchmark" else "#benchmark-evaluation"
        options = {option.id: option for option in self.query_one(side).query(Option)}
        for option in options.values():
            if option.problem:
                return option.problem
        values = {name: option.value for name, option in options.items()}
        if kind == "benchmark":
            return Benchmark(
                model=values["option-bench-model"],
                lengths=values["option-lengths"],
                new_tokens=values["option-bench-new"],
                repeats=values["option-repeats"],
                dtype=self.query_one("#dial-bench-dtype", ChoiceDial).value,  # type: ignore[arg-type]
            )
        return Evaluate(
            weights=values["option-weights"],
            cases=values["option-cases"],
            atol=values["option-atol"],
            dtype=self.query_one("#dial-evaluate-dtype", ChoiceDial).value,  # type: ignore[arg-type]
            cached=kind == "kv-evaluate",
        )

    # --- a job's events -----------------------------------------------------------------------------------

    def _on_events(self, batch: Sequence[Event]) -> None:
        """A tick's events of our job."""
        if self.job is None:
            return
        self.job.feed(batch)
        if self._seen or self.job.over:
            self._refresh()

    def on_show(self) -> None:
        """Back on screen: show what came meanwhile."""
        self._seen = True
        self._refresh()

    def on_hide(self) -> None:
        """Off the screen: keep the data, paint nothing."""
        self._seen = False

    def _refresh(self) -> None:
        self._show_running()
        self._show_progress()
        self._show_evaluation()
        self._show_sweep()

    def _show_running(self) -> None:
        """Buttons and keys follow the state. The focus stays on a button that can be pressed."""
        stop = self.query_one("#stop", Button)
        if stop.disabled != self.running:
            return
        focused = self.screen.focused
        for button in self.query(Button):
            button.disabled = self.running != (button is stop)
        if isinstance(focused, Button) and focused in self.query(Button):
            (stop if self.running else self.query_one("#evaluate", Button)).focus()
        self.app.refresh_bindings()

    def _show_progress(self) -> None:
        bar, job = self.query_one(ProgressBar), self.job
        bar.display = self.running
        if job is None:
            self._say("e, k and s start; blank paths mean the bundled files")
        elif job.over:
            self._say(f"{job.kind}: {job.state}", problem=job.failed)
        elif job.progress is None:
            bar.update(total=None)
            self._say(f"{job.kind}: waiting for the engine ({engine_of(self.app).status.line})")
        else:
            bar.update(total=job.progress.total, progress=job.progress.done)
            self._say(f"{job.kind}: {_progress_text(job.progress)}")

    def _show_evaluation(self) -> None:
        job, table = self.evaluation, self.query_one("#cases", TableView)
        table.display = job is not None and bool(job.cases)
        verdict_view = self.query_one("#verdict", Static)
        if job is None:
            verdict_view.update("Press e or k: the bundled model is checked against its expected logits.")
            return
        verdict_view.update(job.state or f"▶ {len(job.cases)} cases so far")
        verdict_view.set_class(job.failed, "-problem")
        verdict_view.set_class(job.over and not job.failed, "-good")
        table.show(*evaluation_variants(job.cases, cached=job.kind == "kv-evaluate", atol=job.atol))

    def _show_sweep(self) -> None:
        job, table = self.sweep, self.query_one("#rows", TableView)
        rows = job.rows if job else []
        new_tokens = job.request.new_tokens if job and isinstance(job.request, Benchmark) else None
        table.display = bool(rows)
        table.show(*benchmark_variants(rows, new_tokens=new_tokens))
        self.query_one(PlotView).show(benchmark_chart(rows, new_tokens=new_tokens))
        notes = self.query_one("#notes", Static)
        if job is not None and job.benchmark is not None:
            notes.update("\n".join([*job.benchmark.notes, machine_text(job.benchmark.machine)]))
        else:
            notes.update("")

    def _say(self, text: str, *, problem: bool = False) -> None:
        label = self.query_one("#benchmark-status", Label)
        label.update(text)
        label.set_class(problem or text.startswith("✗"), "-problem")

    def on_option_edited(self, message: Option.Edited) -> None:
        """Say at once what is wrong with an option."""
        message.stop()
        problem = next((option.problem for option in self.query(Option) if option.problem), "")
        if problem:
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
        """What does not fit, a screen up or down."""
        for body in self.query(VerticalScroll):
            body.scroll_relative(y=by * max(1, body.size.height - 2), animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Start only when nothing runs, stop only what runs; pages exist on narrow screens only."""
        if action == "stop":
            return self.running
        if action in ("evaluate", "kv_evaluate", "sweep"):
            return not self.running
        if action == "next_page":
            return self.screen.has_class("-narrow")
        return True

    # --- documents ----------------------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """The last sweep and the last evaluation, the latest job first."""
        found = []
        if self.sweep is not None and isinstance(self.sweep.request, Benchmark) and self.sweep.rows:
            found.append(benchmark_table(self.sweep.rows, new_tokens=self.sweep.request.new_tokens))
        if self.evaluation is not None and self.evaluation.cases:
            cached = self.evaluation.kind == "kv-evaluate"
            found.append(evaluation_table(self.evaluation.cases, cached=cached))
        return tuple(found if self.job is self.sweep else reversed(found))

    def export_markdown(self) -> str:
        """What was measured: tables, verdict, plot, notes and the machine."""
        parts = ["# Evaluation and benchmark", *(as_markdown(table) for table in self.tables())]
        if self.evaluation is not None:
            parts.append(self.evaluation.state)
        if self.sweep is not None and self.sweep.rows:
            plot = draw(benchmark_chart(self.sweep.rows), width=96, height=24)
            parts.append(f"```text\n{plot}\n```")
        if self.sweep is not None and self.sweep.benchmark is not None:
            parts += [f"- {note}" for note in self.sweep.benchmark.notes]
            parts.append(f"Measured on {machine_text(self.sweep.benchmark.machine)}.")
        return "\n\n".join(parts) + "\n"

    def command_line(self) -> str:
        """The command of the latest job; of the sweep as the form stands before there is one."""
        kind: Kind = self.job.kind if self.job else "benchmark"
        request = self._request(kind)
        if isinstance(request, str):
            request = self.job.request if self.job else Benchmark()
        return shlex.join(["kvscope", kind, *job_options(request)])


def _medians(repeats: int) -> str:
    return f"medians of {repeats} repeats" if repeats > 1 else "one run each"


def _progress_text(progress: Progress) -> str:
    parts = [f"{progress.done} of {progress.total}"]
    if progress.detail:
        parts.append(progress.detail)
    if progress.remaining_s is not None:
        parts.append(f"{format_duration_s(progress.remaining_s)} left")
    return " · ".join(parts)


def job_options(request: Evaluate | Benchmark) -> list[str]:
    """The command line's options for a request; defaults are left out."""
    if isinstance(request, Evaluate):
        given: tuple[tuple[str, object, object], ...] = (
            ("--weights", request.weights, None),
            ("--cases", request.cases, None),
            ("--atol", request.atol, None),
            ("--dtype", request.dtype, "float64"),
        )
    else:
        given = (
            ("--model", request.model, None),
            ("--lengths", ",".join(map(str, request.lengths)), DEFAULT_LENGTHS),
            ("--new-tokens", request.new_tokens, 40),
            ("--repeats", request.repeats, 5),
            ("--dtype", request.dtype, "auto"),
        )
    return [part for flag, value, default in given if value != default for part in (flag, f"{value}")]
