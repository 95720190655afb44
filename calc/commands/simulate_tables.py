"""The tables and sentences of ``simulate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.tables import Column, Row, Table
from calc.simulate.summary import NEEDED
from calc.units import Quantity, format_count, format_duration_s, format_number

if TYPE_CHECKING:
    from calc.commands.output import Answer
    from calc.commands.simulate import Point, Simulated
    from calc.simulate.summary import Outcome, Spread

NAMES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("End to end", "e2e"), ("In the queue", "wait"))


def answer_of(answer: Simulated) -> Answer:
    """Heading, tables and sentences."""
    if answer.load is None:
        return f"{where(answer)}: {answer.problem}.", [], notes(answer)
    tables = [load_table(answer)]
    if len(answer.points) == 1 and answer.found is None:
        point = answer.points[0]
        tables += [times_table(point.seen), use_table(point.seen)]
        if point.fast is not None and point.slow is not None:
            tables.append(band_table(answer, point))
    return heading(answer), tables, notes(answer)


def where(answer: Simulated) -> str:
    """The model and its server."""
    devices = "one" if answer.asked.tp == 1 else f"{answer.asked.tp} x"
    return f"{answer.study.model.title} on {devices} {answer.study.device.name}"


# --- tables -------------------------------------------------------------------------------------------------


def load_table(answer: Simulated) -> Table:
    """One row per load."""
    times = [
        Column(f"{name} {at}", numeric=True, priority=3 if at == "p99" else 2)
        for name in ("TTFT", "TPOT", "E2E")
        for at in ("p50", "p99")
    ]
    columns = (
        Column("Load", numeric=True),
        Column("Of full load", numeric=True, priority=3),
        Column("Requests/s", numeric=True, priority=1),
        Column("Output tokens/s", numeric=True, priority=2),
        *times,
        Column("Waiting", numeric=True, priority=1),
        Column("Running", numeric=True, priority=1),
        Column("Preempted", numeric=True, priority=0),
        *([Column("Goodput/s", numeric=True, priority=3), Column("Limits")] if answer.aim is not None else []),
    )
    return Table(title="Load", columns=columns, rows=[_load_row(answer, point) for point in answer.points])


def _load_row(answer: Simulated, point: Point) -> Row:
    seen, used = point.seen, answer.utilization(point)
    spreads = (seen.ttft, seen.tpot, seen.e2e)
    cells = [
        load_name(point),
        _share(used),
        format_number(seen.requests_per_s, "requests/s"),
        format_number(seen.output_tokens_per_s, "tokens/s"),
        *(_said(spread, percent) for spread in spreads for percent in (50, 99)),
        _mean(seen.course.waiting),
        _mean(seen.course.running),
        format_count(seen.preemptions),
    ]
    aim = answer.aim
    if aim is not None:
        broken = seen.broken(aim.limits, aim.percent)
        cells += [format_number(seen.goodput_per_s or 0.0, "requests/s"), _kept(broken)]
    return Row(tuple(cells), struck=used is not None and used >= 1)


def _kept(broken: Sequence[str]) -> str:
    return "kept" if not broken else f"not {', '.join(name.upper() for name in broken)}"


def load_name(point: Point) -> str:
    """The load of a row."""
    if point.users is not None:
        return Quantity(f"{point.users:,} users" if point.users > 1 else "1 user", point.users, "users")
    return "trace" if point.rate is None else Quantity(f"{format_number(point.rate)}/s", point.rate, "requests/s")


def times_table(seen: Outcome) -> Table:
    """Percentiles of every time."""
    columns = (Column("Time"), *(Column(name, numeric=True) for name in ("Mean", "p50", "p90", "p95", "p99", "Most")))
    rows = []
    for name, key in NAMES:
        spread: Spread | None = getattr(seen, key)
        if spread is None:
            rows.append(Row((name, *["–"] * 6)))
            continue
        said = (_said(spread, percent) for percent in NEEDED)
        rows.append(Row((name, format_duration_s(spread.mean), *said, format_duration_s(spread.values[-1]))))
    return Table(title="Times", columns=columns, rows=rows)


def use_table(seen: Outcome) -> Table:
    """What was in use, and what was computed."""
    course = seen.course
    rows = [
        ("Running requests, mean", _mean(course.running)),
        ("Waiting requests, mean", _mean(course.waiting)),
        ("Waiting requests, maximum", format_count(seen.waiting_most)),
        ("Cache used, mean", _share(sum(course.cache) / len(course.cache))),
        ("Cache used, maximum", _share(seen.cache_most)),
        ("Device busy", _share(seen.busy_share)),
        ("Steps", format_count(seen.steps)),
        ("Prompt tokens cached", format_count(seen.cached_tokens)),
        ("Preemptions", format_count(seen.preemptions)),
        ("Tokens recomputed", format_count(seen.recomputed_tokens)),
    ]
    return Table(title="In use", columns=(Column("Quantity"), Column("Value", numeric=True)), rows=[*map(Row, rows)])


def band_table(answer: Simulated, point: Point) -> Table:
    """The same load with steps at the low and the high end of their band."""
    assert point.fast is not None
    assert point.slow is not None
    names = (f"Steps x {answer.band.low:.3g}", "x 1", f"x {answer.band.high:.3g}")
    columns = (Column("Quantity"), *(Column(name, numeric=True) for name in names))
    three = (point.fast, point.seen, point.slow)
    rows = []
    for name, key in NAMES[:3]:
        for percent in (50, 99):
            rows.append(Row((f"{name} p{percent}", *(_said(getattr(seen, key), percent) for seen in three))))
    rows.append(Row(("Requests/s", *(format_number(seen.requests_per_s, "requests/s") for seen in three))))
    if point.seen.good is not None:
        rows.append(Row(("Goodput/s", *(format_number(seen.goodput_per_s or 0.0, "requests/s") for seen in three))))
    return Table(title="Band of the times", columns=columns, rows=rows)


def _said(spread: Spread | None, percent: int) -> str:
    value = None if spread is None else spread.said(percent)
    return "–" if value is None else format_duration_s(value)


def _share(value: float | None) -> str:
    return "" if value is None else Quantity(f"{value:.1%}", value)


def _mean(values: Sequence[float]) -> Quantity:
    return format_number(sum(values) / len(values))


# --- sentences ----------------------------------------------------------------------------------------------


def heading(answer: Simulated) -> str:
    """The answer in one sentence."""
    if answer.found is not None:
        return f"{where(answer)}: {found_sentence(answer)}"
    if len(answer.points) != 1:
        return f"{where(answer)}: {requests_said(answer)}, simulated at {len(answer.points)} loads."
    point = answer.points[0]
    ttft, tpot = point.seen.ttft, point.seen.tpot
    sees = f"the first token comes after {_said(ttft, 50)} in the median"
    if ttft is not None and ttft.said(99) is not None:
        sees += f", {_said(ttft, 99)} at p99"
    if tpot is not None:
        sees += f"; then {_said(tpot, 50)} per token"
    return f"{where(answer)}: {load_said(point)} with {requests_said(answer)}: {sees}."


def load_said(point: Point) -> str:
    """The load in words."""
    if point.users is not None:
        return f"{point.users:,} users" if point.users > 1 else "1 user"
    return "a trace" if point.rate is None else f"{format_number(point.rate)} requests per second"


def requests_said(answer: Simulated) -> str:
    """What the requests are like, in words."""
    if answer.mix is not None:
        return f"{answer.mix.prompt.text} prompt tokens and {answer.mix.new.text} output tokens"
    n, requests = len(answer.requests), answer.requests
    prompt, new = sum(one.prompt_tokens for one in requests) / n, sum(one.new_tokens for one in requests) / n
    return f"{n:,} requests with {prompt:,.0f} prompt tokens and {new:,.0f} output tokens on average"


def found_sentence(answer: Simulated) -> str:
    """The highest load that meets the limits."""
    found, aim = answer.found, answer.aim
    assert found is not None
    assert aim is not None
    kept = ", ".join(f"{name.upper()} {format_duration_s(value)}" for name, value in aim.limits.items())
    broken = " and ".join(name.upper() for name in found.broken)
    what = "requests per second" if answer.args.find == "rate" else "users"
    if found.value is None:
        return f"nothing meets {kept} at p{aim.percent:g}: even a single request does not meet {broken}."
    value = format_number(found.value)
    if found.above is None:
        most = "the full load, which is the limit" if answer.args.find == "rate" else "the highest number tried"
        return f"{value} {what} meet {kept} at p{aim.percent:g}: {most}."
    return f"up to {value} {what} meet {kept} at p{aim.percent:g}; beyond that, {broken} is exceeded first."


def notes(answer: Simulated) -> list[str]:
    """Warnings first, then the assumptions of the simulation."""
    said = list(warnings(answer))
    server = answer.served.server
    if server is not None:
        said.append(
            f"vLLM {answer.served.version}: {server.step_tokens:,} tokens and {server.sequences:,} sequences per "
            f"step, {server.blocks:,} blocks of {server.block_tokens} tokens. Requests are admitted in order of "
            "arrival; the last admitted is preempted first and computed again."
        )
        said.append(
            f"Step times are the middle of the estimate; its band for a closed loop is {answer.band.low:.2g} to "
            f"{answer.band.high:.2g} times that (docs/estimates.md)."
        )
    if len(server.groups if server is not None else ()) > 1:
        said.append("Layers of several kinds share the blocks: prefixes and preempted tokens are never cache hits.")
    if answer.args.trace is None and answer.args.prefix_hit is None and answer.args.find is None:
        said.append("No two prompts share a prefix: add --prefix-hit if yours do.")
    return said


def warnings(answer: Simulated) -> list[str]:
    """Loads above the full load: the queue grows as long as they last."""
    if answer.load is None:
        return []
    full, said = answer.load.full_load, []
    for point in answer.points if answer.found is None else ():
        rate = point.rate
        if rate is not None and rate >= full:
            said.append(
                f"Unstable: {format_number(rate)} requests per second are more than the {format_number(full)} that "
                f"the server completes at full load. The queue grows by {format_number(rate - full)} requests per "
                f"second and never drains: these times are for {point.seen.requests:,} requests and grow with that "
                "number."
            )
    return [*said, f"At full load the server completes {format_number(full)} requests per second."]
