"""What the intensity plots show, in sentences made from computed values and chosen by them; none is fixed text."""

from __future__ import annotations

from math import ceil

from calc.attention import Attention
from calc.intensity import IntensityReport
from calc.traffic import DecodePoint, linear_activations, linear_params
from calc.units import format_count, format_decimal, format_flops

FLAT = 0.001
"""A series whose ends differ by less than this fraction is called flat."""


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
    where = (
        f"95 % of it from N = {near.context:,}" if near else f"{last.intensity / limit:.0%} of it at {last.context:,}"
    )
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
