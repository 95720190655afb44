"""The Roofline pane's content: a step's operators under the device's roofline, and where the limiting resource
changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calc.commands.render import as_markdown
from calc.errors import CalcError
from calc.speed.asked import Load
from calc.speed.crossings import (
    cache_over_weights,
    compute_bound_batch,
    compute_bound_prompt,
    products_compute_bound_batch,
)
from calc.speed.steps import Steps
from calc.units import format_flops, format_rate
from tui.charts.chart import Axis, Chart, Point, Series
from tui.charts.chart_text import draw
from tui.form.estimate import served
from tui.views.estimate import EXPORT_HEIGHT, EXPORT_WIDTH
from tui.views.operators import LETTERS, Explained, explained, kind_words, letter_of, lettered_table, ordered

if TYPE_CHECKING:
    from calc.commands.tables import Table
    from calc.model.study import Study
    from calc.speed.kernels import Device
    from calc.speed.passes import PassTime
    from tui.form.state import AppState
    from tui.live.engine_link import EngineStatus

PHASES = ("decode", "prefill")
CROSSING = "┿ "
"""The mark of a crossing, on its scale and before its sentence."""
LEAST_INTENSITY = 0.25
COLOURS = {"decode": 0, "prefill": 1}
WHOLE = {"decode": "○", "prefill": "◇"}
MEASURED_DTYPES = (("fp32", 4.0), ("bf16", 1.9), ("int8", 0.75))
"""Measured weight formats, by bytes per weight; below them int4."""
ROOFS = ("bf16", "fp8", "int8", "fp4", "int4")
"""Kinds of arithmetic with a roof."""


@dataclass(frozen=True, kw_only=True)
class StepView:
    """The passes for a batch and context; `problem` says why there are none.

    `measured`: what the engine's products achieved on this machine, as FLOP/B and FLOP/s, if it is the device; `own`:
    what the operators of the loaded model (`loaded`) achieved.
    """

    device: str
    batch: int
    context: int
    steps: Steps | None = None
    decode: PassTime | None = None
    prefill: PassTime | None = None
    measured: tuple[Point, ...] = ()
    own: tuple[Point, ...] = ()
    loaded: str = ""
    problem: str = ""

    def phase(self, name: str) -> PassTime | None:
        """The pass of a phase."""
        return self.decode if name == "decode" else self.prefill


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossings:
    """Where the limit changes: batch sizes at the context, and contexts at the batch. None if it never does."""

    batch_products: int | None = None
    batch_step: int | None = None
    context_cache: int | None = None
    context_prompt: int | None = None


def step_view(state: AppState) -> StepView:
    """The passes shown by the pane: `step_batch` sequences of `step_context` tokens. Never raises CalcError."""
    empty = StepView(device=state.study.device.name, batch=state.step_batch, context=state.step_context)
    try:
        steps = steps_of(state)
        decode, prefill = steps.decode(state.step_batch, state.step_context), steps.prefill(state.step_batch)
        return replace(empty, steps=steps, decode=decode, prefill=prefill, measured=measured_points(steps.study))
    except CalcError as error:
        return replace(empty, problem=f"{error}.")


def with_own(view: StepView, status: EngineStatus) -> StepView:
    """`view` with the points of the loaded model, if this machine is the device and they were measured."""
    from calc.sources.machine import MARK

    if status.model is None or status.own is None or not view.device.endswith(MARK):
        return replace(view, own=(), loaded="")
    from tui.live.own_points import own_points

    return replace(view, own=own_points(status.model, status.own), loaded=status.model.name)


def measured_points(study: Study) -> tuple[Point, ...]:
    """Products timed on this machine in the format of the weights; empty if it is not the device."""
    from calc.sources.machine import MARK, machine_or_none, roof_points

    machine = machine_or_none() if study.device.name.endswith(MARK) else None
    if machine is None:
        return ()
    gpus = {f"{name} {MARK}": rates for name, _, rates in machine.gpus}
    each = float(study.weight_format.bytes_per_element)
    dtype = next((name for name, least in MEASURED_DTYPES if each >= least), "int4")
    return roof_points(gpus.get(study.device.name, machine.rates), dtype)


def steps_of(state: AppState) -> Steps:
    """The passes of the state's model as its engine runs them. Raises CalcError."""
    plain = replace(state.serving, chunk=None, prefix_hit=None, drafted=0, limits=(), price=None)
    study, asked = served(replace(state, serving=plain))
    asked = replace(asked, load=Load.STATIC, count=state.step_batch, prompt_tokens=state.step_context, new_tokens=1)
    return Steps(study=study, asked=asked)


def crossings_of(view: StepView) -> Iterator[Crossings]:
    """Where the limit changes, found one after another: each search takes some ten passes."""
    if view.steps is None:
        return
    found = Crossings(batch_products=products_compute_bound_batch(view.steps))
    yield found
    found = replace(found, batch_step=compute_bound_batch(view.steps))
    yield found
    found = replace(found, context_cache=cache_over_weights(view.steps, view.batch))
    yield found
    yield replace(found, context_prompt=compute_bound_prompt(view.steps, view.batch))


def crossing_sentences(view: StepView, at: Crossings) -> tuple[str, ...]:
    """The marks of the scales in words: one line for the batch, and one for the context."""
    if view.steps is None:
        return ()
    products = "never" if at.batch_products is None else f"from {at.batch_products:,}"
    whole = "never" if at.batch_step is None else f"from {at.batch_step:,}"
    cache = "never" if at.context_cache is None else f"from {at.context_cache:,}"
    prompt = "never" if at.context_prompt is None else f"from {at.context_prompt:,}"
    return (
        f"{CROSSING}Batch: arithmetic limits matrix products {products}, the whole step {whole}.",
        f"{CROSSING}Context: reads more cache than weights {cache}; arithmetic limits prefill {prompt}.",
    )


def step_table(view: StepView, phase: str) -> Table | None:
    """The operators of a phase, slowest first."""
    time = view.phase(phase)
    if time is None:
        return None
    what = f"batch {view.batch:,}, {view.context:,} tokens"
    title = f"Decode step, {what}" if phase == "decode" else f"Prefill, {what} each"
    return lettered_table(title, time, prefill=phase == "prefill")


def explained_step(view: StepView, phase: str, index: int) -> Explained:
    """The derivation of the time in a line of `step_table`."""
    time = view.phase(phase)
    if time is None or view.steps is None:
        return Explained(title="No roofline", remark=view.problem)
    return explained(time, view.steps.device, index)


def roofline_markdown(state: AppState, status: EngineStatus) -> str:
    """The pane as a document: plot, both tables, where the limits change."""
    view = with_own(step_view(state), status)
    crossings = list(crossings_of(view))
    tables = [table for phase in PHASES if (table := step_table(view, phase)) is not None]
    sentences = crossing_sentences(view, crossings[-1]) if crossings else ()
    parts = [
        f"# Roofline of {state.study.model.title} on {state.study.device.name}",
        f"```text\n{draw(roofline_chart(view), width=EXPORT_WIDTH, height=EXPORT_HEIGHT)}\n```",
        *map(as_markdown, tables),
        "\n".join(f"- {sentence.removeprefix(CROSSING)}" for sentence in sentences),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


# The plot


def roofline_chart(view: StepView, *, front: str = "decode") -> Chart:
    """FLOP/s against FLOP/B: the roofs, one letter per operator, ○ and ◇ for whole passes.

    The pass `front` is drawn over the other. Measured values are drawn over the estimates, as ●.
    """
    back = "prefill" if front == "decode" else "decode"
    points = [*_phase_series(view, back), *_phase_series(view, front)]
    series = [
        *_roofs(view, [x for one in points for x, _ in one.points]),
        *points,
        *_measured(view),
        *_legend(view),
    ]
    return Chart(
        title=f"{view.device} · batch {view.batch:,} · {view.context:,} tokens",
        x=Axis(title="FLOP/B", log=True, tick=_intensity),
        y=Axis(title="FLOP/s", log=True, tick=_rate),
        series=tuple(series),
        notes=("small letters: decode, capitals: prefill",),
        empty="nothing to draw",
    )


def _measured(view: StepView) -> Iterator[Series]:
    """Measured points of this machine, drawn over the estimates."""
    for label, colour, points in (
        ("products measured here", 3, view.measured),
        (f"steps, prompts and layers of {view.loaded}", 4, view.own),
    ):
        if points:
            yield Series(label=label, symbol="●", colour=colour, joined=False, points=points)


def _legend(view: StepView) -> Iterator[Series]:
    """The drawn letters, always in the same order; ○ and ◇ come first."""
    if view.decode is None:
        return
    yield Series(label="whole step", symbol=WHOLE["decode"], colour=COLOURS["decode"], points=())
    yield Series(label="whole prompt", symbol=WHOLE["prefill"], colour=COLOURS["prefill"], points=())
    kinds = {one.operator.kind for one in view.decode.operators}
    for kind, letter in LETTERS.items():
        if kind in kinds:
            yield Series(label=kind_words(kind), symbol=letter, colour=COLOURS["decode"], points=())


def _phase_series(view: StepView, phase: str) -> list[Series]:
    """One series per letter, slowest last, so that slow operators are drawn over the rest; then the whole pass."""
    time = view.phase(phase)
    if time is None:
        return []
    by_letter: dict[str, list[Point]] = {}
    for one in reversed(ordered(time)):
        if letter := letter_of(one, prefill=phase == "prefill"):
            flops, moved = float(one.operator.flops), float(one.operator.bytes)
            by_letter.setdefault(letter, []).append((flops / moved, flops / one.time_s))
    by_letter[WHOLE[phase]] = [(time.flops / time.bytes, time.flops / time.expected_s)]
    return [
        Series(label="", symbol=letter, colour=COLOURS[phase], joined=False, points=tuple(at))
        for letter, at in by_letter.items()
    ]


def _roofs(view: StepView, intensities: Sequence[float]) -> Iterator[Series]:
    """The roof for each kind of arithmetic of the device: bandwidth times intensity up to its peak."""
    if view.steps is None:
        return
    device = view.steps.device
    bandwidth, by_peak = device.bandwidth_bytes_per_s, _by_peak(device)
    least = min([*intensities, LEAST_INTENSITY])
    most = max([*intensities, *(2 * peak / bandwidth for peak in by_peak)])
    start = (least, least * bandwidth)
    for number, (peak, names) in enumerate(by_peak.items()):
        corner = (peak / bandwidth, peak)
        label = f"{', '.join(names)} {format_rate(peak, 'FLOP/s')}, ridge {peak / bandwidth:,.0f}"
        yield Series(label=label, symbol=" ", colour=2 + number, points=(start, corner, (most, peak)))
        start = corner  # the slope is drawn once


def _by_peak(device: Device) -> dict[float, list[str]]:
    """The peaks from the lowest to the highest, each with the arithmetic that has it."""
    found: dict[float, list[str]] = {}
    for dtype in ROOFS:
        if peak := device.peaks.get(dtype):
            found.setdefault(peak, []).append(dtype)
    return dict(sorted(found.items()))


def _intensity(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.2g}"


def _rate(value: float) -> str:
    return str(format_flops(value)).replace("FLOP", "").replace(" ", "").replace(".0", "")
