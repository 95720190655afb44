"""Sentences about the numbers. Each is made from computed values and chosen by them; none is fixed text."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from calc.attention import Attention
from calc.intensity import IntensityReport
from calc.memory import MemoryReport, memory_report
from calc.specs import ModelSpec, Policy
from calc.traffic import DecodePoint, linear_activations, linear_params
from calc.units import format_bytes, format_count, format_flops, format_decimal

FLAT = 0.001
"""A series whose ends differ by less than this fraction is called flat."""


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
    return f"It would fit with {', or '.join(ways)}." if ways else "No tensor parallelism over whole heads makes it fit."


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
        f"{model.n_sliding_layers} of {model.n_layers} layers keep a window of {window:,} tokens, {capped} the context; "
        f"the cache is {format_decimal(report.kv_bytes_per_request)} instead of "
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


def intensity_observations(report: IntensityReport) -> tuple[str, ...]:
    """What the two plots show, in sentences."""
    return (
        _at_the_point(report),
        _saturation(report),
        _other_algorithm(report),
        _attention_by_batch(report),
        _linear_by_batch(report),
        _step_by_batch(report),
        _ridge(report),
    )


def _at_the_point(report: IntensityReport) -> str:
    q, p, d = report.query, report.prefill, report.decode
    return (
        f"At N = {q.context:,} and d = {q.head_dim} {q.attention} attention does {format_flops(p.flops)} on "
        f"{format_decimal(p.bytes)} in prefill, {p.intensity:.2f} FLOP/B, and {format_flops(d.flops)} on "
        f"{format_decimal(d.bytes)} in decode, {d.intensity:.3f} FLOP/B: {p.intensity / d.intensity:,.0f} times less."
    )


def _saturation(report: IntensityReport) -> str:
    points, limit = report.prefill_by_context, report.prefill.limit
    first, last = points[0], points[-1]
    if limit is None:
        return (
            f"Prefill rises with the context without a limit, from {first.intensity:,.1f} FLOP/B at N = "
            f"{first.context:,} to {last.intensity:,.1f} at {last.context:,}: FLOPs grow with N², bytes with N."
        )
    near = next((p for p in points if p.intensity >= 0.95 * limit), None)
    where = f"95 % of it from N = {near.context:,}" if near else f"{last.intensity / limit:.0%} of it at {last.context:,}"
    return (
        f"Prefill saturates: it tends to {limit:.2f} FLOP/B and reaches {where} ({first.intensity:.1f} at N = "
        f"{first.context:,}, {last.intensity:.1f} at {last.context:,}), because S and P are moved N² at a time just "
        f"as FLOPs grow with N²."
    )


def _other_algorithm(report: IntensityReport) -> str:
    flash, standard = report.prefill, report.other_prefill
    flash_decode, standard_decode = report.decode, report.other_decode
    if report.query.attention is Attention.STANDARD:
        flash, standard, flash_decode, standard_decode = standard, flash, standard_decode, flash_decode
    return (
        f"Keeping S and P on the chip (FlashAttention) moves {standard.bytes / flash.bytes:.1f} times fewer bytes in "
        f"prefill, {flash.intensity:,.1f} against {standard.intensity:,.1f} FLOP/B, and "
        f"{standard_decode.bytes / flash_decode.bytes:.2f} times in decode, where the cache itself is the traffic."
    )


def _attention_by_batch(report: IntensityReport) -> str:
    points = report.decode_by_batch
    low, high = points[0].attention_intensity, points[-1].attention_intensity
    g, grouped = report.query.model.group_size, report.decode_by_batch_grouped[0].attention_intensity
    shape = "is flat" if abs(high - low) <= FLAT * high else "changes"
    text = (
        f"Decode attention {shape} in the batch, {low:.2f} FLOP/B at B = {points[0].batch} and {high:.2f} at "
        f"{points[-1].batch}: every sequence reads its own K and V, so FLOPs and bytes grow alike"
    )
    if g == report.query.group_size:
        return text + "."
    return text + f"; {g} query heads a KV head make it {grouped:.2f}, since K and V are read once for {g} heads."


def _linear_by_batch(report: IntensityReport) -> str:
    first, last = report.decode_by_batch[0], report.decode_by_batch[-1]
    gain = last.linear_intensity / first.linear_intensity
    return (
        f"The linear layers rise {gain:,.0f} times, from {first.linear_intensity:.2f} FLOP/B at B = {first.batch} to "
        f"{last.linear_intensity:.1f} at {last.batch}: their weights are read once for the whole batch."
    )


def _step_by_batch(report: IntensityReport) -> str:
    plain, grouped = report.decode_by_batch, report.decode_by_batch_grouped

    def span(points: tuple[DecodePoint, ...]) -> str:
        return f"{points[0].step_intensity:.2f} to {points[-1].step_intensity:.2f} FLOP/B"

    g = report.query.model.group_size
    text = f"The whole decode step goes from {span(plain)} over the same batches"
    if g != report.query.group_size:
        text += f" ({span(grouped)} with {g} query heads a KV head)"
    last = plain[-1]
    pull = "attention holds it down" if last.step_intensity < 0.5 * last.linear_intensity else "the linear layers lead"
    return f"{text}: at B = {last.batch} and N = {report.query.context:,} {pull}."


def critical_batch(report: IntensityReport, ridge: float) -> int | None:
    """Smallest batch at which the linear layers reach `ridge` FLOP/B; None where activations prevent it."""
    query = report.query
    weights = linear_params(query.model)
    gain = 2 * weights - ridge * linear_activations(query.model) * float(query.element_bytes)
    if gain <= 0:
        return None
    return max(1, ceil(ridge * weights * float(query.weight_element_bytes) / gain))


def _times_from(intensity: float, ridge: float) -> str:
    if intensity >= ridge:
        return f"{intensity / ridge:,.1f} times above it"
    return f"{ridge / intensity:,.0f} times below it"


def _ridge(report: IntensityReport) -> str:
    device = report.query.device
    ridge = device.ridge()
    if ridge is None:
        return f"{device.name}: bandwidth or peak is not known, so there is no ridge to compare with; pick a device."
    prefill = report.prefill.intensity
    side = "limited by memory" if prefill < ridge else "limited by compute"
    batch = critical_batch(report, ridge)
    linear = (
        f"the linear layers reach it at a batch of {format_count(batch)}"
        if batch
        else "the linear layers never reach it at these formats"
    )
    return (
        f"The ridge of {device.name} lies at {ridge:.0f} FLOP/B (bf16): prefill attention at {prefill:.1f} is {side}, "
        f"decode attention at {report.decode.intensity:.2f} is {_times_from(report.decode.intensity, ridge)}; {linear}."
    )
