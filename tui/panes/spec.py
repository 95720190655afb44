"""The Spec pane: the form on the left, its results on the right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Input

from calc.commands.headline import asked_notes, asked_steps, asked_table
from calc.commands.tables import Table, tp_table
from calc.fit.memory import MemoryReport
from calc.model.named import weight_names
from calc.model.parts import Mlp, Norm
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.study import DeviceSpec, Study
from calc.units import format_rate
from tui.form.draft import (
    LAYERED_FIELDS,
    MODEL_CHOICES,
    MODEL_COUNTS,
    MODEL_FLAGS,
    STORED,
    Draft,
    auto_head_dim,
    field_texts,
    format_beside,
    origin_of_model,
    read_draft,
    windows_follow,
)
from tui.form.fields import FIELDS, POLICIES
from tui.form.state import Analysis, AppState, with_policy, with_study
from tui.panes.base import Pane, StateEdited
from tui.views.layer_map import kinds_sentence, layer_map
from tui.views.memory import answer_grid, component_bars, memory_markdown, sources_text, tp_grid
from tui.views.table_text import table_text
from tui.widgets.bar import MemoryBar
from tui.widgets.cached_static import Build, CachedStatic
from tui.widgets.card import card
from tui.widgets.derivation import Derivation
from tui.widgets.dial import Dial
from tui.widgets.form import FieldDial, FieldInput, FormChecked, FormRow, ListSuggester, SwitchRow, Toggle
from tui.widgets.layer_strip import LayerStrip
from tui.widgets.notes import Notes
from tui.widgets.picker_field import PickerField

if TYPE_CHECKING:
    from tui.views.rule import Rule

HELP = """\
The model, the device and the workload. Each edit is checked as you type. An invalid field is marked and shows the
reason; the results of the last valid input stay on screen.

Start from a catalog entry, from a config.json (ctrl+o), or type the numbers. The results are on the right, and in the
two lines at the top of every pane."""


def device_facts(device: DeviceSpec, width: int) -> str:
    """Bandwidth, peak and ridge in a line, as many as fit in `width` cells; it says so if they are not known."""
    peak, bandwidth, ridge = device.peak_flops_per_s.get("bf16"), device.bandwidth_bytes_per_s, device.ridge()
    facts = [
        format_rate(bandwidth) if bandwidth else "",
        f"{format_rate(peak, 'FLOP/s')} bf16" if peak else "",
        f"ridge {ridge:.0f} FLOP/B" if ridge else "",
    ]
    known = [fact for fact in facts if fact]
    while len(known) > 1 and len(" · ".join(known)) > width:
        known.pop()
    return " · ".join(known) or "bandwidth and peak unknown"


def context_note(study: Study) -> str:
    """A warning if the context exceeds the model's limit."""
    limit = study.model.max_context
    return f"! this model supports at most {limit:,} tokens" if limit is not None and study.context > limit else ""


WORKLOAD_FIELDS = ("context", "weight_format", "kv_format", "tp")


class SpecPane(Pane):
    """All inputs, and their results at once."""

    TITLE = "Spec"
    HELP: ClassVar[str] = HELP

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._state: AppState | None = None
        self._report: MemoryReport | None = None
        self._model_origin: ModelSpec | None = None
        self._device_origin: DeviceSpec | None = None
        self._errors: dict[str, str] = {}
        self._answered: AppState | None = None
        self._inputs: dict[str, FieldInput] = {}
        self._windows_follow = False
        self._whole = False

    # --- composition --------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        yield card("Results", CachedStatic(id="spec-first"), id="card-first")
        with VerticalScroll(id="spec-form", can_focus=False):
            yield self._model_card()
            yield self._device_card()
            yield self._workload_card()
        with VerticalScroll(id="spec-follows", can_focus=False):
            yield card("Results", CachedStatic(id="spec-answer"), MemoryBar(id="spec-bar"), id="card-answer")
            yield card("Notes", Notes(id="spec-notes"))

    async def mount_more(self) -> None:
        """Cards further down, or only for large screens; the app calls this after the first paint."""
        from tui.widgets.plot import PlotView

        command = card("Equivalent command", CachedStatic(id="spec-command"))
        sources = card("Sources", CachedStatic(id="spec-sources"), id="card-sources")
        contexts = card("", CachedStatic(id="spec-contexts"), id="card-spec-contexts")
        plot = card("Plot", PlotView(id="spec-plot"), id="card-plot")
        more = VerticalScroll(
            card("Tensor parallelism", CachedStatic(id="spec-tp")),
            card("Calculation", Derivation(id="spec-steps")),
            card("", CachedStatic(id="spec-formats"), id="card-spec-formats"),
            card("Where the parameters are", CachedStatic(id="spec-components")),
            id="spec-more",
            can_focus=False,
        )
        await self.query_one("#spec-form").mount(command, sources)
        await self.query_one("#spec-follows").mount(contexts, plot)
        await self.mount(more)
        self._whole = True
        if self._answered is not None and self._report is not None:
            self._show_below(self._answered, self._report)

    def _row(self, *names: str, single: bool = False, suggester: ListSuggester | None = None) -> FormRow:
        row = FormRow(*names, single=single, suggester=suggester)
        self._inputs.update(row.inputs)
        return row

    def _model_card(self) -> Widget:
        return card(
            "Model",
            SwitchRow("Catalog", (PickerField(FIELDS["model"]),)),
            self._row("n_layers", "n_heads"),
            self._row("n_kv_heads", "head_dim"),
            self._row("hidden_size", "intermediate_size"),
            self._row("vocab_size", "n_learned_positions"),
            self._row("n_sliding_layers", "window"),
            SwitchRow("MLP, head", (FieldDial(FIELDS["mlp"], Mlp), Toggle(FIELDS["tied"]))),
            SwitchRow("Norm", (FieldDial(FIELDS["norm"], Norm), Toggle(FIELDS["qk_norm"]))),
            SwitchRow("Biases", [Toggle(FIELDS[name]) for name in MODEL_FLAGS if name.endswith("bias")]),
            LayerStrip(legend=True, id="spec-layers"),
            CachedStatic(id="spec-read-only"),
        )

    def _device_card(self) -> Widget:
        return card(
            "Device",
            SwitchRow("Catalog", (PickerField(FIELDS["device"]),)),
            self._row("memory_bytes", single=True),
            CachedStatic(id="device-facts"),
        )

    def _workload_card(self) -> Widget:
        weights, caches = ListSuggester(weight_names()), ListSuggester(FORMATS)
        return card(
            "Workload",
            self._row("context", single=True),
            self._row("weight_format", single=True, suggester=weights),
            self._row("kv_format", single=True, suggester=caches),
            self._row("tp", single=True),
            SwitchRow("Split rule", (FieldDial(FIELDS["policy"], POLICIES),)),
        )

    # --- showing ------------------------------------------------------------------------------------------

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Put a state from elsewhere into the fields, and show its results."""
        if state is not self._answered:  # otherwise only the theme or the marker has changed
            self._follow(state)
        self.answer(state, analysis)

    def answer(self, state: AppState, analysis: Analysis) -> None:
        """Show the results of `state`; the fields keep what was typed since."""
        self._answered = state
        self._report = analysis.memory
        self._show_consequences(state, analysis.memory)

    def _follow(self, state: AppState) -> None:
        """Put `state` into the fields; unchanged parts keep the typed text."""
        before, self._state = self._state, state
        study = state.study
        if before is None or study.model != before.study.model:
            self._start_from(study.model, origin_of_model(study.model))
            self._fill(study, MODEL_COUNTS)
        if before is None or study.device != before.study.device:
            self._device_origin = study.device
            self._fill(study, ("memory_bytes",))
        if before is None or replace(before.study, model=study.model, device=study.device) != study:
            self._fill(study, WORKLOAD_FIELDS)
        self._fill_switches(study)
        self._dial("policy").value = state.policy
        self._reread(post=False)

    def _start_from(self, model: ModelSpec, origin: ModelSpec) -> None:
        """From now on, edits start from `origin`; sizes that differ by layer cannot be edited."""
        self._model_origin = origin
        self._windows_follow = bool(model.n_sliding_layers) and windows_follow(model, origin)
        fixed = frozenset() if origin.uniform else LAYERED_FIELDS
        for name in (*MODEL_COUNTS, *MODEL_FLAGS, *MODEL_CHOICES):
            self.query_one(f"#field-{name}").disabled = name in fixed
        self._shown("spec-read-only", origin.layers, lambda _: "" if origin.uniform else kinds_sentence(origin))
        self.query_one("#spec-read-only").display = not origin.uniform

    def _fill(self, study: Study, names: Iterable[str]) -> None:
        texts = field_texts(study)
        with self.prevent(Input.Changed):
            for name in names:
                self._inputs[name].value = texts[name]

    def _fill_switches(self, study: Study) -> None:
        for name in MODEL_FLAGS:
            self._toggle(name).value = getattr(study.model, name)
        self._dial("mlp").value = str(study.model.mlp)
        self._dial("norm").value = str(study.model.norm)

    def _show_consequences(self, state: AppState, report: MemoryReport) -> None:
        study = report.study
        self.query_one("#field-model", PickerField).value = study.model.title
        self.query_one("#field-device", PickerField).value = study.device.name
        self.query_one("#spec-layers", LayerStrip).show(layer_map(study))
        self._shown("device-facts", study.device, lambda width: device_facts(study.device, width))
        for name in ("spec-first", "spec-answer"):  # only one of the two is displayed
            self._shown(name, asked_table(report), lambda width: answer_grid(report, width))
        self.query_one(MemoryBar).show(report)
        self.query_one("#spec-notes", Notes).show(asked_notes(report))
        if self._whole:
            self._show_below(state, report)

    def _show_below(self, state: AppState, report: MemoryReport) -> None:
        """What is mounted after the first paint."""
        from tui.form.command_line import memory_command
        from tui.views.batches import batch_by_context
        from tui.views.rule import rule_of

        rule, study = rule_of(state), report.study
        contexts = batch_by_context(rule, explained=False)
        command, sources = memory_command(state.study, state.server), sources_text(study)
        self.query_one("#card-spec-contexts").border_title = contexts.title
        self._shown("spec-contexts", contexts, lambda width: table_text(contexts, width))
        self._shown("spec-command", command, lambda _: command)
        self._shown("spec-sources", sources, lambda _: sources)
        self._show_beside(rule, report)

    def _show_beside(self, rule: Rule, report: MemoryReport) -> None:
        """The third column, if the screen has one."""
        if not self.screen.has_class("-ultra"):
            return
        from tui.views.batches import batch_by_format, batch_chart
        from tui.widgets.plot import PlotView

        formats = batch_by_format(rule)
        self._shown("spec-tp", tp_table(report), lambda width: tp_grid(report, width))
        self.query_one("#spec-steps", Derivation).show("", asked_steps(report)[-4:])
        self.query_one("#card-spec-formats").border_title = formats.title
        self._shown("spec-formats", formats, lambda width: table_text(formats, width))
        self._shown("spec-components", report.parameters, lambda _: component_bars(report))
        self.query_one("#spec-plot", PlotView).show(batch_chart(rule))

    def _shown(self, name: str, key: object, build: Build) -> None:
        self.query_one(f"#{name}", CachedStatic).show(key, build)

    def on_resize(self) -> None:
        """Fill the third column when the screen becomes wide enough for it."""
        if self._whole and self._answered is not None and self._report is not None:
            from tui.views.rule import rule_of

            self._show_beside(rule_of(self._answered), self._report)

    # --- editing ------------------------------------------------------------------------------------------

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if isinstance(event.input, FieldInput):
            event.stop()
            if event.input.field.name == "n_sliding_layers":
                self._windows_follow = False
            self._reread()

    @on(Toggle.Changed)
    @on(Dial.Changed)
    def _turned(self) -> None:
        self._reread()

    def _reread(self, *, post: bool = True) -> None:
        """Read the form, show errors in place, and propose the new state if there is one."""
        if self._state is None:
            return
        reading = read_draft(self._draft(), self._state.study)
        if self._errors != reading.errors:
            self.post_message(FormChecked(next(iter(reading.errors.values()), ""), self))
        self._errors = dict(reading.errors)
        if self._inputs["weight_format"].value.strip().lower() == STORED and reading.study.model.stored is None:
            self._fill(reading.study, ("weight_format",))  # an edited model no longer has a checkpoint
        if self._windows_follow and reading.study.model.n_sliding_layers:
            self._fill(reading.study, ("n_sliding_layers",))
        self._inputs["head_dim"].placeholder = auto_head_dim({n: w.value for n, w in self._inputs.items()})
        for row in self.query(FormRow):
            row.say(self._errors, note=context_note(reading.study) if "context" in row.inputs else "")
        state = with_policy(with_study(self._state, reading.study), self._dial("policy").value)
        if post and state != self._state:
            self._state = state
            self.post_message(StateEdited(state, self))

    def _draft(self) -> Draft:
        assert self._model_origin is not None
        assert self._device_origin is not None
        assert self._state is not None
        return Draft(
            texts={name: widget.value for name, widget in self._inputs.items()},
            flags={name: self._toggle(name).value for name in MODEL_FLAGS},
            mlp=Mlp(self._dial("mlp").value),
            norm=Norm(self._dial("norm").value),
            policy=self._state.study.policy,
            model_origin=self._model_origin,
            device_origin=self._device_origin,
            windows_follow=self._windows_follow,
        )

    def take_model(self, model: ModelSpec) -> None:
        """Start from `model`: every model field shows it, replacing typed text."""
        assert self._state is not None
        study = replace(self._state.study, model=model, weight_format=format_beside(self._state.study, model))
        self._start_from(model, model)
        self._fill(study, (*MODEL_COUNTS, "weight_format"))
        self._fill_switches(study)
        self._reread()

    def take_device(self, device: DeviceSpec) -> None:
        """Use `device`, replacing a typed memory."""
        assert self._state is not None
        self._device_origin = device
        self._fill(replace(self._state.study, device=device), ("memory_bytes",))
        self._reread()

    # --- what the app asks for ----------------------------------------------------------------------------

    @property
    def errors(self) -> dict[str, str]:
        """Errors in the form, by field name."""
        return dict(self._errors)

    def first_focus(self) -> Widget:
        """Where the focus starts."""
        return self.query_one("#field-model")

    def tables(self) -> tuple[Table, ...]:
        """The answer, then tensor parallelism."""
        return () if self._report is None else (asked_table(self._report), tp_table(self._report))

    def export_markdown(self) -> str:
        """The spec's answer as a document."""
        return "" if self._report is None else memory_markdown(self._report)

    def command_line(self) -> str:
        """``kvscope memory …`` for the spec."""
        from tui.form.command_line import memory_command

        return "" if self._state is None else memory_command(self._state.study, self._state.server)

    def _toggle(self, name: str) -> Toggle:
        return self.query_one(f"#field-{name}", Toggle)

    def _dial(self, name: str) -> FieldDial:
        return self.query_one(f"#field-{name}", FieldDial)
