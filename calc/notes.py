"""What a reader of the memory table should know, in sentences made from the numbers and chosen by them.

Apart from `calc.observations`, so that a cold ``memory`` imports nothing of the intensity study.
"""

from __future__ import annotations

from dataclasses import replace

from calc.memory import MemoryReport, memory_report
from calc.specs import ModelSpec, Policy
from calc.units import format_bytes, format_decimal


def memory_notes(report: MemoryReport) -> tuple[str, ...]:
    """What a reader of the memory table should know: readings, assumptions, and what would fit."""
    notes = [f"Device memory: {report.study.device.reading}.", _grouping_note(report.study.model)]
    notes.append(_fit_note(report))
    if report.study.model.n_sliding_layers:
        notes.append(_window_note(report))
    notes.extend(f"TP {row.tp} cannot be served: {row.problem}." for row in report.tp if row.problem)
    notes.extend(_replication_notes(report))
    notes.append(
        f"Every parameter is counted at {_bytes_each(report)}; activations, runtime and graphs are not counted."
    )
    return (*notes, *report.study.model.notes)


def _bytes_each(report: MemoryReport) -> str:
    value = report.study.weight_format.bytes_per_element
    return f"{float(value):g} byte" + ("" if value == 1 else "s")


def _grouping_note(model: ModelSpec) -> str:
    if model.group_size == 1:
        return f"Multi-head attention: each of the {model.n_heads} query heads has its own K and V."
    kind = "Multi-query" if model.n_kv_heads == 1 else "Grouped-query"
    heads = "the one KV head" if model.n_kv_heads == 1 else "a KV head"
    return (
        f"{kind} attention: {model.group_size} query heads share {heads}, so the cache is {model.group_size} times "
        f"smaller than with {model.n_heads} KV heads."
    )


def _fit_note(report: MemoryReport) -> str:
    if report.fits:
        left = report.free_bytes - report.max_batch * report.kv_bytes_per_request
        requests = "request fits" if report.max_batch == 1 else "requests fit"
        return f"{report.max_batch:,} {requests} beside the weights, and {format_decimal(left)} stay free."
    missing = report.kv_bytes_per_request - report.free_bytes
    what = "The weights alone exceed the device" if report.free_bytes < 0 else "The weights fit, one request does not"
    short = -report.free_bytes if report.free_bytes < 0 else missing
    return f"{what}: {format_bytes(short)} are missing. {_remedy(report)}"


def _remedy(report: MemoryReport) -> str:
    """The smallest changes that would make one request fit."""
    ways = []
    per_token = report.kv_bytes_per_request / report.study.context
    context = int(report.free_bytes // per_token) if report.free_bytes > 0 else 0
    if context and not report.study.model.n_sliding_layers:
        ways.append(f"a context of {context:,} tokens")
    if (tp := smallest_fitting_tp(report)) is not None:
        ways.append(f"tensor parallelism over {tp} such devices")
    allowed = report.study.device.memory_bytes - report.kv_bytes_per_request
    if allowed > 0:
        ways.append(f"weights of at most {allowed / report.parameters.total:.2f} bytes each")
    return (
        f"It would fit with {', or '.join(ways)}." if ways else "No tensor parallelism over whole heads makes it fit."
    )


def smallest_fitting_tp(report: MemoryReport) -> int | None:
    """Fewest devices, in whole heads, on which one request fits beside the weights; None if no degree does."""
    study = report.study
    degrees = tuple(tp for tp in range(2, min(study.model.n_heads, 1024) + 1) if study.model.n_heads % tp == 0)
    if not degrees:
        return None
    rows = memory_report(replace(study, tps=degrees, policy=Policy.REPLICATED)).tp
    return next((row.tp for row in rows if row.fits), None)


def _window_note(report: MemoryReport) -> str:
    model, context = report.study.model, report.study.context
    window = model.window or 0
    capped = "less than" if window < context else "at least"
    return (
        f"{model.n_sliding_layers} of {model.n_layers} layers keep a window of {window:,} tokens, {capped} the "
        f"context; the cache is {format_decimal(report.kv_bytes_per_request)} instead of "
        f"{format_decimal(report.kv_bytes_per_token * context)}."
    )


def _replication_notes(report: MemoryReport) -> list[str]:
    n_kv_heads = report.study.model.n_kv_heads
    beyond = [row.tp for row in report.tp if row.tp > n_kv_heads and not row.problem]
    if not beyond:
        return []
    degrees = ", ".join(map(str, beyond))
    return [
        f"Beyond {n_kv_heads} GPUs (TP {degrees}) whole KV heads repeat: a server's cache a GPU shrinks no further, "
        "whatever the equal split says."
    ]
