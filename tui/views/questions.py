"""The questions turned round, answered for the study: what fits, how long, how many devices, which, in which format."""

from __future__ import annotations

from calc.commands.tables import Table
from calc.fit.memory import MemoryReport
from calc.fit.solve import (
    ContextAnswer,
    GridRow,
    advice,
    batch_grid,
    devices_that_fit,
    fewest_devices,
    formats_that_fit,
    largest_batch,
    largest_context,
    shortage,
)
from calc.model.spec import Study
from calc.units import format_count, format_decimal, format_gib

CONTEXTS = tuple(2**i for i in range(10, 18))
TPS = (1, 2, 4, 8, 16)
MOST_ROWS = 8


def whole_answer(report: MemoryReport, *, batch: int, tp: int) -> list[tuple[str, tuple[str, ...], Table | None]]:
    """Title, sentences and table of every question, in the order of need."""
    study = report.study
    return [
        ("What fits?", _what_fits(report, batch, tp), None),
        ("Largest context", (context_sentence(largest_context(study, batch=batch, tp=tp), batch, tp),), None),
        ("Fewest devices", _devices_sentences(study, batch), None),
        (
            "Largest batch by TP and context",
            ("– where not one request fits, ✗ where no server could split it.",),
            grid_table(study),
        ),
        ("Which device?", (), device_table(study, batch=batch, tp=tp)),
        ("Which format?", (), format_table(study, batch=batch, tp=tp)),
        ("What grows next?", growth_sentences(report, tp=tp), None),
    ]


def _requests(n: int) -> str:
    return "1 request" if n == 1 else f"{n:,} requests"


def _gpus(tp: int) -> str:
    return "1 device" if tp == 1 else f"{tp:,} devices"


def _what_fits(report: MemoryReport, batch: int, tp: int) -> tuple[str, ...]:
    study = report.study
    found = largest_batch(study, tp=tp)
    if found.problem:
        return (f"TP {tp:,} cannot be served: {found.problem}.",)
    if found.batch >= batch:
        held, weights = format_decimal(found.kv_bytes_per_request), format_decimal(found.weight_bytes)
        return (
            f"{_requests(found.batch)} of {study.context:,} tokens on {_gpus(tp)}: {weights} "
            f"of weights and {held} of cache a request on each, {format_decimal(found.free_bytes)} free.",
        )
    ways = tuple(f"{item.text} ({' '.join(item.options)})" for item in advice(report, batch=batch, tp=tp))
    remedy = ways or ("No single change makes it fit.",)
    return (f"Does not fit: {shortage(report, batch=batch, tp=tp)}", "What makes it fit, each by itself:", *remedy)


def context_sentence(found: ContextAnswer, batch: int, tp: int) -> str:
    """The longest context of a batch, in words."""
    if found.problem:
        return f"None: {found.problem}."
    if found.context is None:
        return f"None: {format_decimal(found.missing_bytes)} are missing for one token of {_requests(batch)}."
    if found.unbounded:
        return f"Any: what a request keeps does not grow beyond {format_decimal(found.kv_bytes)}."
    beyond = "; more than the model was made for" if found.beyond_model else ""
    each = format_decimal(found.kv_bytes)
    return f"{found.context:,} tokens for {_requests(batch)} on {_gpus(tp)}, {each} of cache each{beyond}."


def _devices_sentences(study: Study, batch: int) -> tuple[str, ...]:
    found = fewest_devices(study, batch=batch)
    if found.devices is None:
        return (f"No number of such devices up to 1,024: {format_decimal(found.missing_bytes)} are missing.",)
    plans = [
        f"TP {plan.tp:,} x PP {plan.pp:,}: {_requests(plan.max_batch)} fit, "
        f"{format_decimal(plan.weight_bytes)} of weights on the fullest device"
        + (f", stage {plan.binding_stage} binds" if plan.pp > 1 else "")
        for plan in found.plans[:3]
    ]
    return (f"{found.devices:,} x {study.device.name} for {_requests(batch)} of {study.context:,} tokens.", *plans)


def _cell(row: GridRow, i: int) -> str:
    if row.problem:
        return "✗"
    return format_count(row.cells[i].max_batch) if row.cells[i].fits else "–"


def grid_table(study: Study) -> Table:
    """The largest batch by TP (columns) and context (rows) under the study's rule; its own context is marked."""
    contexts = tuple(sorted({*CONTEXTS, study.context}))
    tps = tuple(sorted({*TPS, *study.tps}))[:6]
    grid = batch_grid(study, tps, contexts)
    rows = tuple(
        (
            f"{context:,}{' ◂' if context == study.context else ''}",
            *(
                "✗" if row.problem else format_count(row.cells[i].max_batch) if row.cells[i].fits else "–"
                for row in grid
            ),
        )
        for i, context in enumerate(contexts)
    )
    return Table(
        title="Largest batch by TP and context",
        columns=("Context", *(f"TP {row.tp}" for row in grid)),
        rows=rows,
        numeric=frozenset(range(1, len(grid) + 1)),
    )


def device_table(study: Study, *, batch: int, tp: int) -> Table:
    """Devices of the catalog that hold the batch, the smallest first; one that does not, to see how much it lacks."""
    found = devices_that_fit(study, batch=batch, tp=tp)
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


def format_table(study: Study, *, batch: int, tp: int) -> Table:
    """Formats of weights and cache that make the batch fit, least loss first; else what the smallest ones lack."""
    found = formats_that_fit(study, batch=batch, tp=tp)
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


def growth_sentences(report: MemoryReport, *, tp: int) -> tuple[str, ...]:
    """What one more request takes, and twice the context."""
    study = report.study
    one = largest_batch(study, tp=tp)
    request = one.kv_bytes_per_request + one.state_bytes
    longer = largest_context(study, batch=max(1, one.batch), tp=tp)
    sentences = [
        f"One more request takes {format_decimal(request)} on each device; {format_decimal(one.free_bytes)} are free."
    ]
    if longer.context is not None and not longer.unbounded and one.batch:
        sentences.append(f"With {_requests(one.batch)} the context can grow to {longer.context:,} tokens.")
    part = "weights" if one.weight_bytes > one.batch * request else "cache"
    sentences.append(f"Most of the memory is {part}.")
    return tuple(sentences)
