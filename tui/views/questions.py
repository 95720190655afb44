"""The inverse questions, answered by the rule of the state: what fits, which context, how many devices, which
format."""

from __future__ import annotations

from calc.commands.llamacpp import every_advice
from calc.commands.tables import Table
from calc.fit.admission import Costs
from calc.fit.solve import (
    ContextAnswer,
    devices_that_fit,
    fewest_devices,
    formats_that_fit,
    largest_batch,
    largest_context,
)
from calc.units import format_count, format_decimal, format_gib
from tui.views.batches import batch_by_context
from tui.views.rule import Rule

TPS = (1, 2, 4, 8, 16)
MOST_TPS = 6
MOST_ROWS = 8


def whole_answer(rule: Rule, *, batch: int, tp: int) -> list[tuple[str, tuple[str, ...], Table | None]]:
    """Title, sentences and table of every question, most important first. Raises SpecError."""
    costs = rule.costs(tp)
    grid = grid_table(rule)
    return [
        ("What fits?", _what_fits(costs, batch, tp), None),
        ("Largest context", (context_sentence(largest_context(costs, batch=batch), batch, tp),), None),
        ("Fewest devices", _devices_sentences(costs, batch), None),
        (grid.title, ("–: no request fits. ✗: this rule cannot split the model that way.",), grid),
        ("Which device?", (), device_table(costs, batch=batch)),
        ("Which format?", (), format_table(costs, batch=batch)),
        ("What grows next?", growth_sentences(costs), None),
    ]


def _requests(n: int) -> str:
    return "1 request" if n == 1 else f"{n:,} requests"


def _gpus(tp: int) -> str:
    return "1 device" if tp == 1 else f"{tp:,} devices"


def _what_fits(costs: Costs, batch: int, tp: int) -> tuple[str, ...]:
    found = largest_batch(costs)
    if found.problem:
        return (f"TP {tp:,} cannot be served: {found.problem}.",)
    if found.batch >= batch:
        held, weights = format_decimal(found.kv_bytes_per_request), format_decimal(found.weight_bytes)
        return (
            f"{_requests(found.batch)} of {costs.study.context:,} tokens on {_gpus(tp)}. Each device holds {weights} "
            f"of weights and {held} of cache per request; {format_decimal(found.free_bytes)} are free.",
        )
    ways = tuple(f"{item.text} ({' '.join(item.options)})" for item in every_advice(costs, batch))
    remedy = ways or ("No single change makes it fit.",)
    return (f"Does not fit: {costs.shortage(batch)}", "Each of these changes is enough to make it fit:", *remedy)


def context_sentence(found: ContextAnswer, batch: int, tp: int) -> str:
    """The longest context of a batch, in words."""
    if found.context is None:
        why = found.problem or f"one token of {_requests(batch)} needs {format_decimal(found.missing_bytes)} more"
        return f"None: {why}."
    if found.unbounded:
        return f"Any: the cache of a request never exceeds {format_decimal(found.kv_bytes)}."
    beyond = "; this is beyond the model's limit" if found.beyond_model else ""
    each = format_decimal(found.kv_bytes)
    return f"{found.context:,} tokens for {_requests(batch)} on {_gpus(tp)}, {each} of cache each{beyond}."


def _devices_sentences(costs: Costs, batch: int) -> tuple[str, ...]:
    found, study = fewest_devices(costs, batch=batch), costs.study
    if found.devices is None:
        return (f"Not possible with up to 1,024 such devices: {format_decimal(found.missing_bytes)} are missing.",)
    plans = [
        f"TP {plan.tp:,} x PP {plan.pp:,}: {_requests(plan.max_batch)} fit, "
        f"{format_decimal(plan.weight_bytes)} of weights on the fullest device"
        + (f", limited by stage {plan.binding_stage}" if plan.pp > 1 and plan.binding_stage else "")
        for plan in found.plans[:3]
    ]
    return (f"{found.devices:,} x {study.device.name} for {_requests(batch)} of {study.context:,} tokens.", *plans)


def grid_table(rule: Rule) -> Table:
    """The largest batch by context, with more degrees of tensor parallelism than the panes show."""
    return batch_by_context(rule, tuple(sorted({*TPS, *rule.tps}))[:MOST_TPS], explained=False)


def device_table(costs: Costs, *, batch: int) -> Table:
    """Catalog devices that hold the batch, smallest first; and one that does not, to show how much is missing."""
    found = devices_that_fit(costs, batch=batch)
    fitting = [device for device in found if device.fits][:MOST_ROWS]
    short = sorted((device for device in found if not device.fits), key=lambda device: device.missing_bytes)[:2]
    rows = [(device.id, format_gib(device.memory_bytes), format_count(device.max_batch), "") for device in fitting] + [
        (device.id, format_gib(device.memory_bytes), "–", f"lacks {format_decimal(device.missing_bytes)}")
        for device in short
    ]
    return Table(
        title="Which device?",
        columns=("Device", "Memory", "Batch", "Remark"),
        rows=tuple(rows),
        numeric=frozenset({1, 2}),
    )


def format_table(costs: Costs, *, batch: int) -> Table:
    """Weight and cache formats that make the batch fit, least loss first; else what the smallest ones lack."""
    found = formats_that_fit(costs, batch=batch)
    shown = [answer for answer in found if answer.fits][:MOST_ROWS] or list(found[-2:])
    rows = tuple(
        (
            f"weights {answer.weight_format}",
            f"KV {answer.kv_format}",
            format_count(answer.max_batch) if answer.fits else "–",
            f"{answer.largest_context:,}"
            if answer.largest_context
            else f"lacks {format_decimal(answer.missing_bytes)}",
        )
        for answer in shown
    )
    columns = ("Weights", "Cache", "Batch", "Largest context")
    return Table(title="Which format?", columns=columns, rows=rows, numeric=frozenset({2, 3}))


def growth_sentences(costs: Costs) -> tuple[str, ...]:
    """What one more request needs, and how far the context could grow."""
    one = largest_batch(costs)
    if one.problem and not one.fits:
        return (f"Nothing: {one.problem}.",)
    request = one.kv_bytes_per_request + one.state_bytes
    sentences = [f"Each extra request needs {format_decimal(request)} per device. {_free(one.free_bytes)}"]
    longer = largest_context(costs, batch=max(1, one.batch))
    if longer.context is not None and not longer.unbounded and one.batch:
        sentences.append(f"With {_requests(one.batch)} the context can grow to {longer.context:,} tokens.")
    part = "weights" if one.weight_bytes > one.batch * request else "cache"
    sentences.append(f"The largest part of the memory is {part}.")
    return tuple(sentences)


def _free(free_bytes: int) -> str:
    if free_bytes < 0:
        return f"There is no free memory (short by {format_decimal(-free_bytes)})."
    return f"{format_decimal(free_bytes)} are free."
