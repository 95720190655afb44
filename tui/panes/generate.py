"""The Generate tab: a prompt, its continuation as it arrives, and its cost, measured and predicted."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Label

from calc.commands.render import as_markdown
from calc.commands.tables import Table
from calc.sources import is_path
from engine.errors import EngineError
from engine.generation_events import GenerationStarted
from engine.measure.kinds.formats import FormatChoice, Formats
from engine.measure.own import OwnTimesMeasured
from engine.process.events import Generate, Turn
from engine.records import Event, ModelInfo
from tui.charts.chart_text import draw
from tui.charts.plots import latency_chart
from tui.form.state import Analysis, AppState
from tui.live.choice_line import AUTO_LINES, Turned, choice_lines, expected
from tui.live.engine_link import EngineStatus, engine_of
from tui.live.formats import Choice, Effects, effects_table, model_key
from tui.live.generation import Generation, generate_options
from tui.live.load_memory import forecast, shortage
from tui.live.measurement import Job
from tui.live.run_line import comparison_lines, fitting, run_line, waiting_line
from tui.live.run_times import own_request
from tui.panes.base import Pane
from tui.views.generation import Pair, comparison_table, run_table
from tui.widgets.generate_form import DialName, GenerateForm
from tui.widgets.plot import PlotView
from tui.widgets.run_numbers import RunNumbers
from tui.widgets.token_stream import TokenStream
from tui.widgets.work import work

HELP = """\
A model in the engine process continues your prompt.

Enter: generate · Ctrl+J: new line · Esc: stop · c: cache on or off (outside a text field) · ^n or p: next page on a
narrow screen.

dtype, cache kind and tp (keys d, k and t) choose a format. When you change one, its expected cost is shown. Each run
adds a row to the table of formats (▶ marks the chosen one). f compares the logits of the chosen format with float32
on a text: the share of tokens where the top choice agrees, and the mean |Δlogit|.

● marks measured numbers; the others are calculated. TTFT: time to first token. TPOT: time per output token after the
first. To enter token ids, write ids: 1, 2, 3 as the prompt (a model without a tokenizer needs this).

Temperature 0 always takes the most likely token. top-k and top-p limit the choice. The same seed gives the same text.
Model: a Hugging Face folder, a .gguf, .safetensors or .pt file, or the name of a model in the local cache (org/name,
org/name:Q4_K_M). F9 or m lists the models on this machine (Hugging Face, Ollama, LM Studio, llama.cpp, this folder,
the folders in KVSCOPE_MODELS). Leave it empty for the bundled two-layer model.

In chat mode the prompt is a turn in the chat template of the model. Earlier turns stay, and their cache is reused
(the numbers say how much). n starts a new chat. Cache kind: all of it, only the windows, or 8 bits. tp: number of
processes that share the model."""


class GeneratePane(Pane):
    """Runs one generation or comparison with float32 at a time; a stopped run keeps its text and numbers."""

    TITLE: ClassVar[str] = "Generate"
    OF_STATE: ClassVar[bool] = False
    HELP: ClassVar[str] = HELP
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "stop", tooltip="Stop the run and keep its text and numbers"),
        Binding("c", "turn('cache')", "cache on/off", tooltip="Generate with or without the KV cache"),
        Binding("ctrl+n", "next_page", "page", tooltip="Switch between text and numbers"),
        Binding("p", "next_page", "page", show=False),
        Binding("d", "turn('dtype')", "dtype", show=False, tooltip="Next data type of the weights"),
        Binding("k", "turn('cache-kind')", "cache kind", show=False, tooltip="Next kind of KV cache"),
        Binding("t", "turn('tp')", "tp", show=False, tooltip="Next number of tensor-parallel ranks"),
        Binding("f", "effect", "effect", tooltip="Measure the error of the chosen format against float32"),
        Binding("n", "new_chat", "new chat", tooltip="Start a new chat"),
        Binding("f9", "pick_model", "model", tooltip="Choose a model on this machine, or type a name"),
        Binding("m", "pick_model", "model", show=False),
    ]

    def __init__(self, effects: Effects, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        """`effects` keeps the measured cost of each model's formats."""
        super().__init__(id=id, classes=classes)
        self._effects = effects
        self.effect: Job | None = None
        """The comparison of a format with float32 that was started last."""
        self._note: tuple[str, ...] = ()
        """The status line until the next run, in a few lengths, longest first."""
        self.run: Generation | None = None
        self.pair = Pair()
        self._request_id: int | None = None
        self._seen = False
        self._offered = ""
        """The model that was opened elsewhere and is, or was, this pane's."""
        self.turns: tuple[Turn, ...] = ()
        """The chat so far: questions and answers."""

    def compose(self) -> ComposeResult:
        with Horizontal(id="generate-main"):
            with Vertical(id="generate-left"):
                yield TokenStream(id="stream")
                yield Label("", id="generate-status", markup=False)
                yield GenerateForm()
            yield RunNumbers(id="generate-right")

    def on_mount(self) -> None:
        engine_of(self.app).watch(self._engine_changed)
        self._refresh_numbers()
        self._say(self._idle_line())

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Nothing here depends on the study; a new marker or theme redraws the plot."""
        self.query_one(PlotView).refresh()

    def first_focus(self) -> Widget:
        """The prompt."""
        return self.query_one("#prompt")

    # --- sending ------------------------------------------------------------------------------------------

    @property
    def form(self) -> GenerateForm:
        """Prompt and options."""
        return self.query_one(GenerateForm)

    @on(GenerateForm.Stopped)
    def _stopped(self, event: GenerateForm.Stopped) -> None:
        event.stop()
        self.action_stop()

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self.run is not None and not self.run.over

    @property
    def measuring(self) -> bool:
        """Whether a format is being compared with float32."""
        return self.effect is not None and not self.effect.over

    @property
    def busy(self) -> bool:
        """Whether the engine works for this pane."""
        return self.running or self.measuring

    @on(GenerateForm.Sent)
    def send(self) -> None:
        """Generate with the current prompt and options."""
        if self.busy:
            self._say(f"{'a run' if self.running else 'a measurement'} is in progress: press Esc to stop it")
            return
        request = self._request()
        if isinstance(request, str):
            self._say(f"✗ {request}", problem=True)
            return
        self.form.prompt.remember()
        self.run, self._note = Generation(request), ()
        self.query_one(RunNumbers).due_s = 0.0
        if request.turns is None:
            self.query_one(TokenStream).clear()
        else:
            self._show_turn(request.turns)
        if line := forecast(request, engine_of(self.app).status.model):
            self.query_one(TokenStream).write(f"{line}\n", "note")
        try:
            self._request_id = engine_of(self.app).submit(request, self._on_events)
        except EngineError as error:
            self.run.problem = error.message
        self._after_events()

    def _request(self) -> Generate | str:
        """The request the form stands for, or what is wrong with it."""
        return self.form.request(self.turns, engine_of(self.app).status.model)

    def _show_turn(self, turns: tuple[Turn, ...]) -> None:
        """Show the new question after the existing text; a chat's first question starts on a clean page."""
        stream = self.query_one(TokenStream)
        first = not any(turn.role == "assistant" for turn in turns)
        if first:
            stream.clear()
        stream.write(f"{'' if first else chr(10) * 2}{turns[-1].content}\n", "prompt")

    # --- a run's events -----------------------------------------------------------------------------------

    def _on_events(self, batch: Sequence[Event]) -> None:
        """A tick's events of our request: take them all, then draw once."""
        if self.run is None:
            return
        started = self.run.start_ns
        if any(isinstance(event, GenerationStarted) for event in batch):
            # The engine reports what it loads (also in this batch); a model that it already holds is in its status.
            self.run.model = self.run.model or engine_of(self.app).status.model
        self.run.feed(batch)
        if started is None and self.run.start_ns is not None and self.run.request.turns is None:
            self.query_one(TokenStream).write(self.run.shown_prompt, "prompt")
        if self.run.over:
            self.pair = self.pair.with_run(self.run) if self.run.ids else self.pair
            self._effects.take_run(self.run)
        self._after_events()
        if self.run.over:
            self._measure_own(self.run)

    def _measure_own(self, run: Generation) -> None:
        """Time the model's own operators, for the prediction beside `run`: once, and until another request comes."""
        if run.problem is not None or not run.request.use_cache or not run.ids or engine_of(self.app).busy:
            return

        def take(batch: Sequence[Event]) -> None:
            for event in batch:
                if isinstance(event, OwnTimesMeasured) and run is self.run:
                    run.own = event.times
                    self._refresh_numbers()

        request = own_request(run.request, prompt_tokens=len(run.prompt_ids), new_tokens=len(run.ids))
        engine_of(self.app).submit(request, take)

    def _after_events(self) -> None:
        run = self.run
        if run is None:
            return
        if self._seen:
            self.query_one(TokenStream).write(run.take_text())
        if run.over:
            self.query_one(TokenStream).write(run.take_text())
            self._keep_turn(run)
            if run.request.turns is None or run.reason != "eos":  # in a chat, every answer ends this way
                note = f"— {run.outcome} —"
                self.query_one(TokenStream).write(f"\n\n{note}" if run.ids else note, "note")
            self._request_id = None
        if run.over or (self._seen and time.monotonic() >= self.query_one(RunNumbers).due_s):
            self._refresh_numbers()
        self._show_running()
        self._say(self._idle_line(), problem=run.problem is not None)

    def _keep_turn(self, run: Generation) -> None:
        """Add the question and the answer to the chat; the prompt is ready for the next question."""
        if run.request.turns is None or not run.ids:
            return
        self.turns = (*run.request.turns, Turn(role="assistant", content=run.text.strip()))
        self.form.prompt.text = ""

    def _show_running(self) -> None:
        """Update the button and the keys, only when the state changes."""
        if self.form.show_busy(self.busy):
            self.app.refresh_bindings()

    def _refresh_numbers(self) -> None:
        """Everything in the right column."""
        self.query_one(RunNumbers).show(self.run, self.pair)
        self._show_effects()

    def _show_effects(self) -> None:
        """The measured formats of the form's model."""
        self.query_one(RunNumbers).show_effects(self._effects.of(self.form.model), self._chosen)

    def on_show(self) -> None:
        """Back on screen: show what arrived meanwhile."""
        self._seen = True
        if self.run is not None:
            self.query_one(TokenStream).write(self.run.take_text())
        self._refresh_numbers()

    def on_resize(self) -> None:
        """The bars use the available width."""
        self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        self._refresh_numbers()
        if self._note:
            self._say(self._idle_line())

    def on_hide(self) -> None:
        """Off screen: keep the data, paint nothing."""
        self._seen = False

    # --- state in words -----------------------------------------------------------------------------------

    def _engine_changed(self, status: EngineStatus) -> None:
        """Show what the engine does while a run waits for it, and why it stopped if nothing runs."""
        if self.is_mounted and (self.measuring or not (self.run is not None and self.run.start_ns is not None)):
            self._say(self._idle_line())

    def _idle_line(self) -> str:
        run, status = self.run, engine_of(self.app).status
        if self.measuring and self.effect is not None:
            return self._fitting(comparison_lines(self.effect, status))
        if self._note and not self.running:
            return self._fitting(self._note)
        if run is None:
            return waiting_line(status, cache_on=self.form.cache_on)
        return run_line(run, status, rate=self.query_one(RunNumbers).rate)

    def _fitting(self, lines: Sequence[str]) -> str:
        return fitting(lines, self.query_one("#generate-status").content_size.width)

    def _say(self, text: str, *, problem: bool = False) -> None:
        label = self.query_one("#generate-status", Label)
        refused = problem or text.startswith("✗")
        # A line that stays one line high moves nothing: no layout at every tick.
        label.update(text, layout=refused or label.has_class("-problem"))
        label.set_class(refused, "-problem")

    @on(GenerateForm.Edited)
    def _edited(self, event: GenerateForm.Edited) -> None:
        """Show at once what is wrong with an option; another model has its own formats."""
        event.stop()
        if event.of_model:
            self._note = ()
            self._show_effects()
            self.run_worker(work(self._check_model, self.form.model), group="path", exclusive=True)
        problem = self.form.problem
        self._say(f"✗ {problem}" if problem else self._idle_line(), problem=bool(problem))

    async def _check_model(self, model: str | None) -> None:
        """Report a path that does not exist; in a thread, because a disk may not answer."""
        if model is not None and is_path(model) and not await asyncio.to_thread(os.path.exists, model):
            missing = f"✗ no such file or folder: {model}"
            self._note = (f"{missing} (F9 lists the models on this machine)", missing)
            self._say(self._idle_line())

    @on(GenerateForm.DialTurned)
    def _turned(self, event: GenerateForm.DialTurned) -> None:
        """Show a setting for the next run; for a format, what it will cost."""
        event.stop()
        self.app.refresh_bindings()
        self._note = self._choice_lines(event.turned) if event.turned is not None else ()
        self._show_effects()
        if not self.busy:
            self._say(self._idle_line())

    # --- formats ------------------------------------------------------------------------------------------

    @property
    def _chosen(self) -> Choice | None:
        """The choice on the dials; None until it is known what auto means."""
        form = self.form
        runs_as = self._effects.auto(form.model) if form.dtype == "auto" else form.dtype
        return Choice(runs_as, form.cache_kind, form.tp) if runs_as else None

    def _known(self) -> ModelInfo | None:
        """The form's model as it was loaded last, if it was."""
        return self._effects.known(self.form.model, engine_of(self.app).status.model)

    def _choice_lines(self, turned: Turned) -> tuple[str, ...]:
        """What the chosen format costs a run like the last one, with the new tokens of the form."""
        chosen, model, info = self._chosen, self.form.model, self._known()
        if chosen is None:
            return AUTO_LINES if turned == "dtype" else ()
        prompt_tokens = len(self.run.prompt_ids) if self.run is not None and self.run.prompt_ids else 1
        new_tokens = self.form.new_tokens
        ahead = expected(chosen, model_key(model), info, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        return choice_lines(chosen, turned, ahead, measured=self._effects.measured(model, chosen), info=info)

    def action_effect(self) -> None:
        """Measure how far the chosen format's logits are from float32's; the model in memory is released for both."""
        if self.busy:
            return
        form, info = self.form, self._known()
        held = info.weight_bytes if info is not None else 0
        if problem := form.model_problem or shortage(form.model, "float32", given_back_bytes=held):
            self._say(f"✗ {problem}", problem=True)
            return
        choice = FormatChoice(dtype=form.dtype, cache=form.cache_kind)
        self.effect, self._note = Job(Formats(model=form.model, choices=(choice,))), ()
        try:
            self._request_id = engine_of(self.app).submit(self.effect.request, self._on_effect)
        except EngineError as error:
            self.effect.fail(error.message)
        self._after_effect()

    def _on_effect(self, batch: Sequence[Event]) -> None:
        """A tick's events of a comparison with float32."""
        job = self.effect
        if job is None or not isinstance(job.request, Formats):
            return
        job.feed(batch)
        self._effects.take_formats(job.request, batch)
        self._after_effect()

    def _after_effect(self) -> None:
        job = self.effect
        if job is not None and job.over:
            self._request_id = None
            left_out = job.result.notes if job.result is not None and len(job.rows) == 1 else ()
            done = job.result is not None and not left_out
            self._note = self._choice_lines("dtype") if done else (f"✗ {left_out[0]}",) if left_out else (job.outcome,)
        if self._seen:
            self._show_effects()
        self._show_running()
        self._say(self._idle_line())

    # --- actions ------------------------------------------------------------------------------------------

    def action_stop(self) -> None:
        """Stop the run; the engine returns what it generated so far."""
        engine_of(self.app).cancel(self._request_id)

    def action_turn(self, name: DialName) -> None:
        """Move a dial to its next value, for the next run."""
        self.form.turn(name)

    def action_new_chat(self) -> None:
        """Forget all turns; the next question starts a new chat."""
        self.turns, self._note = (), ()
        self.query_one(TokenStream).clear()
        self._say("new chat started")

    def action_pick_model(self) -> None:
        """Choose from the models on this machine, or name a file or folder."""
        from tui.widgets.model_files import pick_model_file

        pick_model_file(self.app, self.form.model_text, self._take_model)

    def offer_model(self, model: str) -> None:
        """Take a model that was opened elsewhere, in the place of none or of the one that was offered before."""
        if self.form.model_text in ("", self._offered):
            self._offered = model
            self._take_model(model)

    def _take_model(self, model: str) -> None:
        self.form.model_text = model
        self._say(self._idle_line())

    def action_next_page(self) -> None:
        """On a narrow screen: the text, or the numbers."""
        self.toggle_class("-numbers")
        self.call_after_refresh(self._refresh_numbers)
        numbers = self.has_class("-numbers")
        self.query_one("#generate-right" if numbers else "#prompt").focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Stop is available only while something runs; pages exist only on narrow screens."""
        if action == "stop":
            return self.busy
        if action == "effect":
            return not self.busy
        if action == "new_chat":
            return self.form.chats
        if action == "next_page":
            return self.screen.has_class("-narrow")
        return True

    # --- documents ----------------------------------------------------------------------------------------

    def tables(self) -> tuple[Table, ...]:
        """The run, the comparison of both ways, and the formats of the model."""
        effects = self._effects.of(self.form.model)
        formats = (effects_table(effects, self._chosen),) if effects else ()
        if self.run is None:
            return formats
        return (run_table(self.run), comparison_table(self.pair), *formats)

    def export_markdown(self) -> str:
        """The run: numbers, prompt and text, latency plot."""
        parts = [as_markdown(table) for table in self.tables()]
        if self.run is None:
            return "\n\n".join(["# Generation", *parts, "Nothing has been generated yet."]) + "\n"
        run = self.run
        plot = draw(latency_chart(run.start_ns, run.times_ns), width=96, height=20)
        text = f"### Text\n\n```text\n{self.query_one(TokenStream).text}\n```"
        return "\n\n".join(["# Generation", *parts, f"```text\n{plot}\n```", text]) + "\n"

    def problem(self) -> str:
        """The first option that cannot be read."""
        return self.form.problem

    def command_line(self) -> str:
        """``kvscope generate …`` with the options of the form (or of the last run if the form is invalid)."""
        request = self._request()
        if isinstance(request, str):
            request = self.run.request if self.run else Generate(prompt=self.form.prompt.text)
        return shlex.join(["kvscope", "generate", *generate_options(request)])
