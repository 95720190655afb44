"""What the Estimate pane and the strip show: the estimate of a state, its sentences, its tables and its plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calc.commands.estimate_tables import NAMES, answer_table, frontier_table, limits_kept, operator_table
from calc.commands.estimate_words import assumptions, crossings, sentence
from calc.commands.frontier import Row, frontier, judged
from calc.commands.render import as_markdown
from calc.commands.tables import Column, Table
from calc.commands.tables import Row as TableRow
from calc.errors import CalcError
from calc.model.study import DeviceSpec, Study
from calc.sources.catalog import find_device
from calc.speed.asked import Load
from calc.speed.derivation import token_terms
from calc.speed.plans import largest_plan
from calc.speed.steps import Steps
from calc.units import Quantity, format_duration_s
from tui.charts.chart import Axis, Chart, Series
from tui.charts.chart_text import draw
from tui.form.estimate import EstimateAnswer, estimate_answer
from tui.views.operators import Explained, explained

if TYPE_CHECKING:
    from tui.form.state import AppState

EXPORT_WIDTH, EXPORT_HEIGHT = 96, 26


# The rows, one after another: the caller may do something else in between


def frontier_rows(answer: EstimateAnswer) -> Iterator[Row]:
    """One row per requested batch size or number of clients."""
    if answer.asked is not None:
        serving = answer.serving
        yield from frontier(answer.study, answer.asked, serving.batches, limits=answer.limits, price=serving.price)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAnswer:
    """A device for comparison: its results, or why it has none."""

    study: Study
    row: Row | None = None
    problem: str = ""

    @property
    def device(self) -> DeviceSpec:
        """The device."""
        return self.study.device


def device_rows(state: AppState) -> Iterator[DeviceAnswer]:
    """The same question for the state's own device and for the compared devices."""
    own = state.study.device
    others = (other for name in state.serving.devices if (other := _device_or_none(name)) is not None)
    for device in (own, *(other for other in others if other.name != own.name)):
        answer = estimate_answer(replace(state, study=replace(state.study, device=device)))
        price = state.serving.price if device is own else None  # the price is that of the state's own device
        row = None if answer.estimate is None else judged(answer.estimate, answer.limits, price)
        yield DeviceAnswer(study=answer.study, row=row, problem=answer.problem)


def _device_or_none(name: str) -> DeviceSpec | None:
    """The device of a name, which may come from the settings; None if it is no longer known."""
    try:
        return find_device(name)
    except CalcError:
        return None


def most_users(answer: EstimateAnswer) -> str:
    """How many clients meet the limits at once, as a sentence; "" without limits."""
    if answer.limits is None or answer.asked is None or answer.estimate is None:
        return ""
    plan = largest_plan(answer.study, answer.asked, answer.limits)
    what = " and ".join(f"{NAMES[name]} of {format_duration_s(most_s)}" for name, most_s in answer.limits.items())
    limits = f"the limit{'s' if len(answer.limits) > 1 else ''} ({what})"
    if plan is None:
        return f"Not even one user stays within {limits}."
    each = "1 user" if plan.batch == 1 else f"Up to {plan.batch:,} users at once"
    return f"{each} {'stays' if plan.batch == 1 else 'stay'} within {limits}."


# Sentences


def headline(answer: EstimateAnswer) -> str:
    """The answer in a sentence, or the reason why there is none."""
    return f"No estimate: {answer.problem}" if answer.estimate is None else sentence(answer.study, answer.estimate)


def remarks(answer: EstimateAnswer) -> tuple[str, ...]:
    """Where the limiting resource changes, and the assumptions."""
    found = answer.estimate
    return () if found is None else (*crossings(answer.study, found), *assumptions(answer.study, found))


def strip_words(answer: EstimateAnswer) -> tuple[str, ...]:
    """The estimate in the strip, the longest form first."""
    found = answer.estimate
    if found is None:
        return ("estimate: pick a device",) if "pick a device" in answer.problem else ("no estimate",)
    if found.user_rate is None or found.ttft is None:
        return ("estimate: does not fit",)
    users = "1 user" if found.batch == 1 else f"{int(found.batch):,} users"
    rate = f"{figures(found.user_rate.low)}–{figures(found.user_rate.high)} tok/s"
    each = "" if found.batch == 1 else " each"
    first = f"TTFT {format_duration_s(found.ttft.low)}–{format_duration_s(found.ttft.high)}"
    return (f"{users}: {rate}{each}, {first}", f"{users}: {rate}{each}", rate)


def figures(value: float) -> str:
    """Two or three figures of a rate."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


# Tables


def device_table(rows: Sequence[DeviceAnswer], price: float | None) -> Table:
    """The devices side by side, with the price per hour at which each costs as much per token as the own device."""
    columns = (
        Column("Device"),
        Column("Users", numeric=True, priority=3),
        Column("TTFT", numeric=True, priority=2),
        Column("Tokens/s per user", numeric=True),
        Column("Total tokens/s", numeric=True),
        Column("Limits", priority=4),
        Column("Worth/hour", numeric=True, priority=5),
        Column("Limited by", priority=1),
    )
    rate = next((rate for row in rows[:1] if (rate := _rate_of(row)) is not None), None)
    made = [_device_row(row, price, rate, own=i == 0) for i, row in enumerate(rows)]
    kept = [i for i in range(len(columns)) if i not in (5, 6) or any(row[i] for row in made)]
    return Table(title="Devices", columns=columns, rows=made).with_columns(kept)


def _rate_of(row: DeviceAnswer) -> float | None:
    rate = None if row.row is None else row.row.answer.output_rate
    return None if rate is None else rate.mid


def _device_row(one: DeviceAnswer, price: float | None, own_rate: float | None, *, own: bool) -> TableRow:
    name = f"{one.device.name}{' ◂' if own else ''}"
    rate, found = _rate_of(one), None if one.row is None else one.row.answer
    if one.row is None or found is None or rate is None or found.user_rate is None or found.ttft is None:
        problem = one.problem or ("" if found is None else f"{found.problem}.")
        return TableRow(
            (name, "–", "–", "–", "–", "", "", "" if found is None else "capacity"),
            title=one.device.name,
            remark=problem,
            struck=True,
            strong=own,
        )
    worth = Quantity(f"{price * rate / own_rate:,.3g}", price * rate / own_rate) if price and own_rate else ""
    users = f"{int(found.batch):,}"
    cells = (
        name,
        users,
        format_duration_s(found.ttft.mid),
        Quantity(f"{figures(found.user_rate.low)}–{figures(found.user_rate.high)}", found.user_rate.mid),
        Quantity(f"{rate:,.0f}", rate),
        limits_kept(one.row),
        worth,
        found.limited_by,
    )
    return TableRow(cells, title=one.device.name, strong=own)


def operator_tables(row: Row | None) -> tuple[Table, Table]:
    """The operators of a batch's decode step and of its prompt; empty if it does not fit."""
    found = None if row is None else row.answer
    if row is None or found is None or found.decode is None or found.prefill is None:
        return NO_OPERATORS, NO_OPERATORS
    prompts = "1 prompt" if found.asked.load is not Load.STATIC or row.batch == 1 else f"{row.batch:,} prompts"
    return (
        operator_table(f"Decode step, batch {int(found.batch):,}", found.decode),
        operator_table(f"Prefill, {prompts}", found.prefill),
    )


NO_OPERATORS = Table(title="Operators", columns=("Operator",), rows=())


# The calculation of the selected line


def explained_row(answer: EstimateAnswer, row: Row | None) -> Explained:
    """A batch, in a sentence."""
    if row is None:
        return Explained(title="No estimate", remark=answer.problem)
    (shown,) = frontier_table([row]).rows
    one = "client" if row.answer.asked.load is Load.CLOSED else "sequence"
    title = f"{row.batch:,} {one}{'' if row.batch == 1 else 's'}"
    if row.answer.decode is None:
        return Explained(title=title, remark=shown.remark)
    asked = answer.asked is not None and row.batch == answer.asked.count  # its sentence is shown above
    note = "" if asked else sentence(answer.study, row.answer)
    terms = token_terms(Steps(study=answer.study, asked=row.answer.asked), int(row.answer.batch))
    return Explained(title=title, terms=terms, remark=shown.remark, note=note)


def explained_device(rows: Sequence[DeviceAnswer], at: int) -> Explained:
    """A device: its sentence, or why it has none."""
    if not rows:
        return Explained(title="")
    one = rows[min(at, len(rows) - 1)]
    if one.row is None or one.row.answer.decode is None:
        problem = one.problem if one.row is None else f"{one.row.answer.problem}."
        return Explained(title=one.device.name, remark=problem)
    return Explained(title=one.device.name, note=sentence(one.study, one.row.answer))


def explained_operator(answer: EstimateAnswer, row: Row, at: int, *, prefill: bool) -> Explained:
    """An operator of the batch's step or prompt."""
    time = row.answer.prefill if prefill else row.answer.decode
    if time is None:
        return Explained(title="")
    return explained(time, Steps(study=answer.study, asked=row.answer.asked).device, at)


# The plot and the document


def frontier_chart(answer: EstimateAnswer, rows: Sequence[Row]) -> Chart:
    """Total tokens per second against those per user: one point per batch size, lines for the band."""
    kept = [row for row in rows if row.meets_limits is not False]
    broken = [row for row in rows if row.meets_limits is False]
    series = [
        Series(label="expected", symbol="○", colour=0, points=_points(kept, "mid")),
        Series(label="exceeds a limit", symbol="×", colour=1, joined=False, points=_points(broken, "mid")),
        Series(label="low", symbol="-", colour=2, points=_points(rows, "low")),
        Series(label="high", symbol="+", colour=2, points=_points(rows, "high")),
        *_limit(answer, rows),
        *_own(answer),
    ]
    return Chart(
        title="Speed per user and in total",
        x=Axis(title="tokens/s per user", tick=_tick, log=True),
        y=Axis(title="total tokens/s", tick=_tick, log=True),
        series=tuple(one for one in series if one.points),
        levels=(),
        empty=answer.problem or "nothing fits: no point to draw",
    )


def _limit(answer: EstimateAnswer, rows: Sequence[Row]) -> list[Series]:
    """The speed per user that the TPOT limit requires, as a vertical line."""
    most_s = (answer.limits or {}).get("tpot")
    heights = [y for name in ("low", "high") for _, y in _points(rows, name)]
    if most_s is None or not heights:
        return []
    line = ((1 / most_s, min(heights)), (1 / most_s, max(heights)))
    return [Series(label=f"TPOT {format_duration_s(most_s)}", symbol="┆", colour=4, points=line)]


def _own(answer: EstimateAnswer) -> list[Series]:
    found = answer.estimate
    if found is None or found.user_rate is None or found.output_rate is None:
        return []
    point = (found.user_rate.mid, found.output_rate.mid)
    return [Series(label="asked", symbol="◆", colour=3, joined=False, points=(point,))]


def _points(rows: Sequence[Row], name: str) -> tuple[tuple[float, float], ...]:
    spans = ((row.answer.user_rate, row.answer.output_rate) for row in rows)
    return tuple((getattr(user, name), getattr(every, name)) for user, every in spans if user and every)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def estimate_markdown(state: AppState) -> str:
    """The pane as a document: sentence, tables, plot, notes."""
    answer = estimate_answer(state)
    rows = list(frontier_rows(answer))
    chart = draw(frontier_chart(answer, rows), width=EXPORT_WIDTH, height=EXPORT_HEIGHT)
    own = () if answer.row is None else (answer_table(answer.row),)
    beside = device_table(list(device_rows(state)), state.serving.price)
    tables = (*own, frontier_table(rows), beside, *operator_tables(answer.row))
    model, device = state.study.model.title, state.study.device.name
    parts = [
        f"# Estimate of {model} on {device}",
        " ".join(filter(None, (headline(answer), most_users(answer)))),
        *(as_markdown(table) for table in tables if table.rows),
        f"```text\n{chart}\n```",
        "\n".join(f"- {remark}" for remark in remarks(answer)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"
