"""The Intensity tab: FLOPs per byte of attention, in prefill and in decode, and what this means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Label, Static

from calc.commands.intensity_tables import batch_table, context_table, flash_table, formula_table, phase_tables
from calc.commands.render import as_markdown
from calc.commands.tables import Table
from calc.intensity.attention import Attention
from calc.intensity.layers import is_plain
from calc.intensity.observations import intensity_observations
from calc.intensity.study import IntensityReport, default_attention
from tui.charts.chart_text import draw
from tui.charts.plots import decode_chart, prefill_chart
from tui.form.command_line import study_options
from tui.form.state import Analysis, AppState
from tui.panes.base import StateEdited
from tui.panes.pages import NEXT_PAGE, PagedPane
from tui.widgets.dial import ChoiceDial, Dial, NumberDial
from tui.widgets.plot import PlotView
from tui.widgets.table_view import TableView

EXPORT_WIDTH, EXPORT_HEIGHT = 96, 26


class IntensityPane(PagedPane):
    """Two plots, the tables with their totals, the formulas, and sentences about them.

    If not all layers have plain attention, the kinds of layers are shown instead of one KV head.
    """

    TITLE: ClassVar[str] = "Intensity"
    PAGES = ("prefill plot", "decode plot", "calculation", "sweeps", "observations")
    HELP: ClassVar[str] = (
        "Arithmetic intensity: FLOPs of attention divided by the bytes it moves to and from device memory, for one "
        "KV head; if layers have windows, latents, indexers or states, for all layers of the model.\n\n↑ ↓ select a "
        "setting · ← → halve or double it · type a number (1024, 8k, 8Ki) and press Enter · f: standard attention or "
        "FlashAttention · x: count softmax FLOPs or not · m: causal mask on or off · ^n or p: next page on a narrow "
        "screen.\n\nN is the context in tokens, d the head dimension. The dashed line is the limit as N grows. The "
        "dotted line is the ridge point of the device (or of common devices if it has none): below it, memory "
        "bandwidth limits the speed."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f", "toggle_attention", "standard/flash", tooltip="Switch between standard attention and FlashAttention"
        ),
        Binding("x", "toggle_softmax", "softmax 5|0", tooltip="Count softmax as 5 FLOPs per element, or as 0"),
        Binding("m", "toggle_mask", "causal", tooltip="Count only the lower triangle of the scores, or all of them"),
        *NEXT_PAGE,
        Binding("up", "previous_dial", "choose", show=False),
        Binding("down", "next_dial", "choose", show=False),
        Binding("pageup", "scroll_page(-1)", "scroll", show=False),
        Binding("pagedown", "scroll_page(1)", "scroll", show=False),
    ]

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._state: AppState | None = None
        self._report: IntensityReport | None = None

    def compose(self) -> ComposeResult:
        with Horizontal(id="intensity-dials"):
            yield NumberDial(
                "N", 1024, unit="tokens", help="Context length N: the number of tokens attended to", id="dial-n"
            )
            yield NumberDial("d", 128, maximum=2**16, unit="", help="Head dimension d", id="dial-d")
            yield ChoiceDial(
                "attention",
                [str(kind) for kind in Attention],
                str(Attention.STANDARD),
                help="standard: S and P are written to device memory. flash: they stay on chip",
                id="dial-attention",
            )
            yield ChoiceDial(
                "softmax", ["5", "0"], "5", unit="FLOP", help="Softmax FLOPs per element of S", id="dial-softmax"
            )
            yield ChoiceDial(
                "mask",
                ["none", "causal"],
                "none",
                help="causal: only the lower triangle of the scores",
                id="dial-mask",
            )
        yield Label("", id="intensity-problem", markup=False)
        yield self.page_label()
        with VerticalScroll(id="intensity-body", can_focus=False):
            with Horizontal(id="intensity-plots"):
                yield PlotView(id="plot-prefill", classes="page-0")
                yield PlotView(id="plot-decode", classes="page-1")
            with Horizontal(id="intensity-texts"):
                with Vertical(id="intensity-tables"):
                    with Vertical(classes="page-2 tables"):
                        yield TableView(id="steps-prefill", continued=True)
                        yield TableView(id="steps-decode", continued=True)
                        yield TableView(id="formulas")
                        yield TableView(id="flash")
                    with Horizontal(id="intensity-sweeps", classes="page-3 tables"):
                        yield TableView(id="by-context")
                        yield TableView(id="by-batch")
                yield Static(id="observations", classes="page-4", markup=False)

    def on_mount(self) -> None:
        self.query_one("#observations").border_title = "Observations"
        self.show_page(0)

    def first_focus(self) -> Widget:
        """The dial of N, so that ← and → change it at once."""
        return self.query_one("#dial-n")

    # --- what is shown ------------------------------------------------------------------------------------

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Show the study of `state`."""
        self._state, self._report = state, analysis.intensity
        self.query_one("#dial-n", NumberDial).value = state.attention_context
        self.query_one("#dial-d", NumberDial).value = state.attention_head_dim
        report = analysis.intensity
        self.query_one("#dial-d").display = report.layers is None
        self.query_one("#dial-attention", ChoiceDial).value = str(report.query.attention)
        self.query_one("#dial-softmax", ChoiceDial).value = str(state.softmax_flops)
        self.query_one("#dial-mask", ChoiceDial).value = "causal" if state.causal else "none"
        self.query_one("#plot-prefill", PlotView).show(prefill_chart(report))
        self.query_one("#plot-decode", PlotView).show(decode_chart(report))
        for name, table in tables_by_place(report).items():
            self.query_one(f"#{name}", TableView).show(table)
        self.query_one("#flash").display = report.layers is None
        self.query_one("#observations", Static).update("\n\n".join(intensity_observations(report)))

    def tables(self) -> tuple[Table, ...]:
        """The step tables, formulas and sweeps."""
        return report_tables(self._report) if self._report else ()

    # --- editing ------------------------------------------------------------------------------------------

    def on_dial_changed(self, message: Dial.Changed) -> None:
        """A dial was turned: propose the new state."""
        message.stop()
        self._propose()

    def on_number_dial_typed(self, message: NumberDial.Typed) -> None:
        """Show at once what is wrong with the typed text."""
        message.stop()
        self.show_problem("#intensity-problem", message.dial.problem)

    def _propose(self) -> None:
        if self._state is None:
            return
        attention = Attention(self.query_one("#dial-attention", ChoiceDial).value)
        usual = default_attention(self._state.study.model)
        state = replace(
            self._state,
            attention=None if attention is usual else attention,
            causal=self.query_one("#dial-mask", ChoiceDial).value == "causal",
            attention_context=self.query_one("#dial-n", NumberDial).value,
            attention_head_dim=self.query_one("#dial-d", NumberDial).value,
            softmax_flops=int(self.query_one("#dial-softmax", ChoiceDial).value),
        )
        if state != self._state:
            self.post_message(StateEdited(state, self))

    def action_toggle_attention(self) -> None:
        """Standard or FlashAttention."""
        self.query_one("#dial-attention", ChoiceDial).action_turn(1)

    def action_toggle_softmax(self) -> None:
        """Count the softmax FLOPs, or not."""
        self.query_one("#dial-softmax", ChoiceDial).action_turn(1)

    def action_toggle_mask(self) -> None:
        """A causal mask, or none."""
        self.query_one("#dial-mask", ChoiceDial).action_turn(1)

    def action_previous_dial(self) -> None:
        """Focus the dial before."""
        self._focus_dial(-1)

    def action_next_dial(self) -> None:
        """Focus the dial after."""
        self._focus_dial(1)

    def _focus_dial(self, by: int) -> None:
        dials = [dial for dial in self.query(Dial) if dial.display]
        focused = self.screen.focused
        at = dials.index(focused) if isinstance(focused, Dial) and focused in dials else -1
        dials[(at + by) % len(dials)].focus()

    def action_scroll_page(self, by: int) -> None:
        """Scroll what is below the plots by one screen."""
        body = self.query_one("#intensity-body", VerticalScroll)
        body.scroll_relative(y=by * max(1, body.size.height - 2), animate=False)

    def show_page(self, page: int) -> None:
        """Show a page from its top."""
        super().show_page(page)
        self.query_one("#intensity-body").scroll_home(animate=False)

    # --- documents ----------------------------------------------------------------------------------------

    def export_markdown(self) -> str:
        """The study: tables, plots as text, observations."""
        if self._report is None:
            return "# Arithmetic intensity\n"
        report = self._report
        plots = [
            f"```text\n{draw(chart, width=EXPORT_WIDTH, height=EXPORT_HEIGHT)}\n```"
            for chart in (prefill_chart(report), decode_chart(report))
        ]
        tables = [as_markdown(table) for table in report_tables(report)]
        sentences = "\n".join(f"- {sentence}" for sentence in intensity_observations(report))
        layered = report.layers is not None
        what = f"the layers of {report.query.model.title}" if layered else f"{report.query.attention} attention"
        heading = f"# Arithmetic intensity of {what}"
        return "\n\n".join([heading, *plots, *tables, "### Observations", sentences]) + "\n"

    def command_line(self) -> str:
        """``kvscope intensity …`` with the options that are not defaults."""
        if self._state is None:
            return "kvscope intensity"
        return " ".join(["kvscope", "intensity", *intensity_options(self._state)])


def report_tables(report: IntensityReport) -> tuple[Table, ...]:
    """The tables of the pane, in its order."""
    return tuple(tables_by_place(report).values())


def tables_by_place(report: IntensityReport) -> dict[str, Table]:
    """The tables of the pane by widget id; FlashAttention is compared only for plain attention."""
    how = "by kind of layer" if report.layers is not None else "step by step"
    prefill, decode = phase_tables(report, f"Prefill, {how}", f"Decode, {how}")
    tables = {"steps-prefill": prefill, "steps-decode": decode, "formulas": formula_table(report)}
    if report.layers is None:
        tables["flash"] = flash_table(report)
    return tables | {"by-context": context_table(report), "by-batch": batch_table(report)}


def intensity_options(state: AppState) -> Sequence[str]:
    """Options of ``kvscope intensity`` for `state`: of the model and device, and of the attention."""
    options = study_options(state.study)
    if state.attention_context != 1024:
        options += ["--context", str(state.attention_context)]
    plain = is_plain(state.study.model)
    if plain and state.attention_head_dim != state.study.model.head_dim:
        options += ["--head-dim", str(state.attention_head_dim)]
    if state.attention not in (None, default_attention(state.study.model)):
        options += ["--attention", str(state.attention)]
    if state.softmax_flops != 5:
        options += ["--softmax-flops", str(state.softmax_flops)]
    return [*options, "--causal"] if state.causal else options
