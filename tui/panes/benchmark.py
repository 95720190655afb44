"""The Benchmark tab: is the engine right (evaluate, kv-evaluate), what does the cache buy, what does a format cost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Button, Input, Label, ProgressBar, Static

from calc.commands.render import as_markdown
from calc.commands.tables import Table
from engine.errors import EngineError
from engine.measure.kinds.batch import Batch
from engine.measure.kinds.benchmark import Benchmark
from engine.measure.kinds.evaluate import Evaluate
from engine.measure.kinds.formats import Formats
from engine.records import Event
from tui.form.sampling import (
    COMPILED_CHOICES,
    COMPILED_HELP,
    DTYPE_CHOICES,
    DTYPE_HELP,
    ROWS_CHOICES,
    ROWS_HELP,
    TP_CHOICES,
    TP_HELP,
    read_atol,
    read_batches,
    read_context,
    read_lengths,
    read_new_tokens,
    read_path,
    read_repeats,
)
from tui.form.state import Analysis, AppState
from tui.live.engine_link import engine_of
from tui.live.formats import Effects
from tui.live.measured_tables import (
    batch_table,
    benchmark_table,
    evaluation_table,
    formats_table,
    machine_text,
)
from tui.live.measurement import DEFAULT_BATCHES, DEFAULT_LENGTHS, Job, JobRequest, Kind, job_options
from tui.panes.base import Pane
from tui.views.chart_text import draw
from tui.views.plots import batch_decode_chart, benchmark_chart
from tui.widgets.dial import ChoiceDial, Dial
from tui.widgets.option import Option
from tui.widgets.plot import PlotView
from tui.widgets.table_view import TableView

RIGHT: dict[Kind, tuple[str, ...]] = {
    "benchmark": ("#rows", "#plot-benchmark"),
    "batch": ("#batches", "#plot-batch"),
    "formats": ("#formats",),
}
"""What is shown on the right, measurements of one model, and in which views."""
BUTTONS: dict[str, Kind] = {
    "evaluate": "evaluate",
    "kv-evaluate": "kv-evaluate",
    "sweep": "benchmark",
    "batch-start": "batch",
    "formats-start": "formats",
}


class BenchmarkPane(Pane):
    """One job at a time; the last of each kind stays on screen."""

    TITLE: ClassVar[str] = "Benchmark"
    HELP: ClassVar[str] = (
        "e evaluate: the engine's logits against expected ones, case by case.\n\n"
        "k kv-evaluate: the same with the KV cache, and cached against uncached: the whole prompt at once, token by "
        "token, in chunks.\n\n"
        "s latency sweep: prompts of growing length with (●) and without (×) the cache; medians of the repeats, the "
        "same tokens in both ways.\n\n"
        "b batch: decode steps of several rows at once, each with a prompt and a cache of its own. A step reads the "
        "weights once for all, so tokens a second rise with the batch until arithmetic binds: measured (●), and beside "
        "it what calc predicts from this machine's bandwidth (as measured at the smallest batch) and arithmetic rate "
        "(as measured on a long prompt). Batches take turns: a row's figures settle over the repeats.\n\n"
        "f formats: the model of the right side in float32, bfloat16, float16, int8, int4 and with an 8-bit cache, one "
        "after the other: memory, time a token, and how far its logits are from float32's on a text: likeliest tokens "
        "that are the same, mean and largest error, perplexity.\n\n"
        "F9 or m lists the models on this machine. Esc stops. F8 or p turns the page on a narrow screen. Blank paths "
        "mean the bundled files. The bar shows the worst error on a logarithmic scale up to the tolerance."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "evaluate", "evaluate", tooltip="Compare logits with expected ones"),
        Binding("k", "kv_evaluate", "kv-evaluate", tooltip="The same with the KV cache"),
        Binding("s", "sweep", "sweep", tooltip="Latency against prompt length, with and without the cache"),
        Binding("b", "batch", "batch", tooltip="Tokens a second against batch, measured and predicted"),
        Binding("f", "formats", "formats", tooltip="What each weight and cache format costs and gains"),
        Binding("f9", "pick_model", "model", tooltip="Choose the model to measure from those on this machine"),
        Binding("m", "pick_model", "model", show=False),
        Binding("escape", "stop", "stop", tooltip="Stop; what was measured stays"),
        Binding("f8", "next_page", "page", tooltip="Evaluation or measurements, on a narrow screen"),
        Binding("p", "next_page", "page", show=False),
        Binding("pageup", "scroll_page(-1)", "scroll", show=False),
        Binding("pagedown", "scroll_page(1)", "scroll", show=False),
    ]

    def __init__(self, effects: Effects, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        """`effects` takes the formats that are measured here, for the Generate tab."""
        super().__init__(id=id, classes=classes)
        self._effects = effects
        self.job: Job | None = None
        self.evaluation: Job | None = None
        self.sweep: Job | None = None
        self.formats: Job | None = None
        self.batch_job: Job | None = None
        self._request_id: int | None = None
        self._seen = False

    def compose(self) -> ComposeResult:
        with Horizontal(id="benchmark-buttons"):
            yield Button("evaluate  e", id="evaluate", compact=True)
            yield Button("kv-evaluate  k", id="kv-evaluate", compact=True)
            yield Button("sweep  s", id="sweep", compact=True)
            yield Button("batch  b", id="batch-start", compact=True)
            yield Button("formats  f", id="formats-start", compact=True)
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
                    with Horizontal(id="line-batch", classes="line"):
                        yield Option("batches", read_batches, text=DEFAULT_BATCHES, width=12, id="option-batches")
                        yield Option("context", read_context, text="64", width=7, id="option-context")
                        yield Option("steps", read_new_tokens, text="16", width=5, id="option-steps")
                    with Horizontal(classes="line"):
                        yield ChoiceDial("rows", ROWS_CHOICES, "ragged", help=ROWS_HELP, id="dial-batch-rows")
                        yield ChoiceDial("tp", TP_CHOICES, "1", help=TP_HELP, id="dial-bench-tp")
                        yield ChoiceDial(
                            "compiled", COMPILED_CHOICES, "off", help=COMPILED_HELP, id="dial-bench-compile"
                        )
                yield TableView(id="rows")
                yield PlotView(benchmark_chart(()), id="plot-benchmark")
                yield TableView(id="batches")
                yield PlotView(id="plot-batch")
                yield TableView(id="formats")
                yield Static("", id="notes", markup=False)

    def on_mount(self) -> None:
        self.query_one(ProgressBar).display = False
        self._refresh()

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Nothing here depends on the study; a new marker or theme redraws the plot."""
        for plot in self.query(PlotView):
            plot.refresh()

    def first_focus(self) -> Widget:
        """The first button, so that the letters work."""
        return self.query_one("#evaluate")

    # --- starting -----------------------------------------------------------------------------------------

    def action_evaluate(self) -> None:
        """Evaluate without the cache."""
        self.start("evaluate")

    def action_kv_evaluate(self) -> None:
        """Evaluate with the cache as well."""
        self.start("kv-evaluate")

    def action_sweep(self) -> None:
        """Measure the latency sweep."""
        self.start("benchmark")

    def action_batch(self) -> None:
        """Measure tokens a second against batch."""
        self.start("batch")

    def action_formats(self) -> None:
        """Measure what formats cost."""
        self.start("formats")

    def action_pick_model(self) -> None:
        """Choose the model of the right side."""
        from tui.widgets.model_files import pick_model_file

        option = self.query_one("#option-bench-model", Option)
        self.add_class("-sweep")
        pick_model_file(self.app, option.text, self._take_model)

    def _take_model(self, model: str) -> None:
        self.query_one("#option-bench-model", Option).text = model

    def action_stop(self) -> None:
        """Stop the job."""
        engine_of(self.app).cancel(self._request_id)

    def on_button_pressed(self, message: Button.Pressed) -> None:
        """The buttons do what their keys do."""
        message.stop()
        kind = BUTTONS.get(message.button.id or "")
        if kind is None:
            self.action_stop()
        else:
            self.start(kind)

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Enter in a field starts the job it belongs to."""
        message.stop()
        if message.input in self.query("#line-batch Input"):
            self.start("batch")
        else:
            in_sweep = message.input in self.query("#benchmark-sweep Input")
            self.start("benchmark" if in_sweep else "evaluate")

    @property
    def running(self) -> bool:
        """Whether a job is under way."""
        return self.job is not None and not self.job.over

    def start(self, kind: Kind) -> None:
        """Start a job, unless one is under way or the form cannot be read."""
        if self.running:
            self._say(f"{self.job.kind if self.job else ''} is under way: Esc stops it")
            return
        request = self._request(kind)
        if isinstance(request, str):
            self._say(f"✗ {request}", problem=True)
            return
        self.job = Job(kind, request, model=engine_of(self.app).status.model)
        match kind:
            case "benchmark":
                self.sweep = self.job
            case "batch":
                self.batch_job = self.job
            case "formats":
                self.formats = self.job
            case _:
                self.evaluation = self.job
        self.set_class(kind in RIGHT, "-sweep")
        self._put_first(kind)
        try:
            self._request_id = engine_of(self.app).submit(request, self._on_events)
        except EngineError as error:
            self.job.state, self.job.failed = f"✗ {error.message}", True
        self._refresh()

    def _put_first(self, kind: Kind) -> None:
        """On the right, what was started last stands first."""
        side = self.query_one("#benchmark-sweep")
        for view in reversed(RIGHT.get(kind, ())):
            side.move_child(self.query_one(view), after=0)

    def _request(self, kind: Kind) -> JobRequest | str:
        """The request the form stands for, or what is wrong with it."""
        side = "#benchmark-sweep" if kind in RIGHT else "#benchmark-evaluation"
        options = {option.id: option for option in self.query_one(side).query(Option)}
        for option in options.values():
            if option.problem:
                return option.problem
        values = {name: option.value for name, option in options.items()}
        if kind == "formats":
            return Formats(model=values["option-bench-model"])
        if kind == "batch":
            return Batch(
                model=values["option-bench-model"],
                batches=values["option-batches"],
                context=values["option-context"],
                new_tokens=values["option-steps"],
                repeats=values["option-repeats"],
                ragged=self.query_one("#dial-batch-rows", ChoiceDial).value == "ragged",
                dtype=self.query_one("#dial-bench-dtype", ChoiceDial).value,  # type: ignore[arg-type]
                tp=int(self.query_one("#dial-bench-tp", ChoiceDial).value),
            )
        if kind == "benchmark":
            return Benchmark(
                model=values["option-bench-model"],
                lengths=values["option-lengths"],
                new_tokens=values["option-bench-new"],
                repeats=values["option-repeats"],
                dtype=self.query_one("#dial-bench-dtype", ChoiceDial).value,  # type: ignore[arg-type]
                tp=int(self.query_one("#dial-bench-tp", ChoiceDial).value),
                compile=self.query_one("#dial-bench-compile", ChoiceDial).value,  # type: ignore[arg-type]
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
        if isinstance(self.job.request, Formats):
            self._effects.take_formats(self.job.request, batch)
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
        self._show_batch()
        self._show_formats()
        self._show_notes()

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
            self._say("e, k, s, b and f start; blank paths mean the bundled files")
        elif job.over:
            self._say(f"{job.kind}: {job.state}", problem=job.failed)
        elif job.progress is None:
            bar.update(total=None)
            self._say(f"{job.kind}: waiting for the engine ({engine_of(self.app).status.line})")
        else:
            bar.update(total=job.progress.total or None, progress=job.progress.done)
            self._say(f"{job.kind}: {job.progress_line}")

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
        table.show(evaluation_table(job.cases, cached=job.kind == "kv-evaluate", atol=job.atol))

    def _show_sweep(self) -> None:
        job, table = self.sweep, self.query_one("#rows", TableView)
        rows = job.rows if job else []
        new_tokens = job.request.new_tokens if job and isinstance(job.request, Benchmark) else None
        table.display = bool(rows)
        table.show(benchmark_table(rows, new_tokens=new_tokens))
        plot = self.query_one("#plot-benchmark", PlotView)
        plot.display = bool(rows) or (self.formats is None and self.batch_job is None)
        plot.show(benchmark_chart(rows, new_tokens=new_tokens))

    def _show_formats(self) -> None:
        rows, table = self.formats.formats if self.formats else [], self.query_one("#formats", TableView)
        table.display = bool(rows)
        table.show(formats_table(rows))

    def _show_batch(self) -> None:
        job, table, plot = (
            self.batch_job,
            self.query_one("#batches", TableView),
            self.query_one("#plot-batch", PlotView),
        )
        rows, predicted = (job.batch_rows, job.predicted) if job is not None else ((), None)
        table.display, plot.display = bool(rows), job is not None
        table.show(batch_table(rows, predicted))
        plot.show(batch_decode_chart(rows, predicted))

    def _show_notes(self) -> None:
        """What is to be known of the latest measurement on the right."""
        measured = [job for job in (self.sweep, self.batch_job, self.formats) if job is not None]
        latest = self.job if self.job in measured else next(iter(measured), None)
        lines = _notes(latest) if latest is not None else []
        if latest is not None and latest.result is not None:
            lines.append(machine_text(latest.result.machine))
        self.query_one("#notes", Static).update("\n".join(lines))

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
        if action in ("evaluate", "kv_evaluate", "sweep", "batch", "formats"):
            return not self.running
        if action == "next_page":
            return self.screen.has_class("-narrow")
        return True

    # --- documents ----------------------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """The last of each kind, the latest job first."""
        found = []
        if self.sweep is not None and isinstance(self.sweep.request, Benchmark) and self.sweep.rows:
            table = benchmark_table(self.sweep.rows, new_tokens=self.sweep.request.new_tokens)
            found.append((self.sweep, table))
        if self.batch_job is not None and self.batch_job.batches:
            found.append((self.batch_job, batch_table(self.batch_job.batch_rows, self.batch_job.predicted)))
        if self.formats is not None and self.formats.formats:
            found.append((self.formats, formats_table(self.formats.formats)))
        if self.evaluation is not None and self.evaluation.cases:
            cached = self.evaluation.kind == "kv-evaluate"
            found.append((self.evaluation, evaluation_table(self.evaluation.cases, cached=cached)))
        found.sort(key=lambda pair: pair[0] is not self.job)
        return tuple(table for _, table in found)

    def export_markdown(self) -> str:
        """What was measured: tables, verdict, plot, notes and the machine."""
        parts = ["# Evaluation and benchmark", *(as_markdown(table) for table in self.tables())]
        if self.evaluation is not None:
            parts.append(self.evaluation.state)
        charts = []
        if self.sweep is not None and self.sweep.rows:
            charts.append(benchmark_chart(self.sweep.rows))
        if self.batch_job is not None and self.batch_job.batches:
            charts.append(batch_decode_chart(self.batch_job.batch_rows, self.batch_job.predicted))
        parts += [f"```text\n{draw(chart, width=96, height=24)}\n```" for chart in charts]
        jobs = [job for job in (self.sweep, self.batch_job, self.formats) if job is not None]
        parts += [f"- {note}" for job in jobs for note in _notes(job)]
        if results := [job.result for job in jobs if job.result is not None]:
            parts.append(f"Measured on {machine_text(results[-1].machine)}.")
        return "\n\n".join(parts) + "\n"

    def command_line(self) -> str:
        """The command of the latest job; of the sweep as the form stands before there is one."""
        kind: Kind = self.job.kind if self.job else "benchmark"
        request = self._request(kind)
        if isinstance(request, str):
            request = self.job.request if self.job else Benchmark()
        return shlex.join(["kvscope", kind, *job_options(request)])


def _notes(job: Job) -> list[str]:
    """Sentences on what a job measured, and on what is predicted beside it."""
    basis = [job.predicted.basis] if job.predicted is not None else []
    return basis + list(job.result.notes if job.result is not None else ())
