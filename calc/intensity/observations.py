"""What the intensity plots show, in sentences made from computed values and chosen by them; none is fixed text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import ceil

from calc.explain.terms import to_text
from calc.intensity.attention import Attention, Phase, attention_work
from calc.intensity.study import IntensityQuery, IntensityReport
from calc.intensity.traffic import (
    DecodePoint,
    linear_activations,
    linear_bytes,
    linear_flops,
    linear_params,
    read_params,
)
from calc.units import format_count, format_decimal, format_flops

FLAT = 0.001
"""A series whose ends differ by less than this fraction is called flat."""
KNEE = 0.95
"""The share of a limit from which a series counts as saturated."""


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


def _figures(value: float) -> str:
    """Three figures, or all of the whole part: 0.993, 57.4, 1,234."""
    digits = next((digits for bound, digits in ((99.95, 0), (9.995, 1), (0.9995, 2)) if value >= bound), 3)
    return f"{value:,.{digits}f}"


def _less(factor: float, what: str) -> str:
    """``9.00 times fewer bytes``, or ``2.1 % fewer bytes`` where the factor is near 1."""
    return f"{_figures(factor)} times {what}" if factor >= 1.5 else f"{100 * (1 - 1 / factor):.1f} % {what}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"


def _grouped(n: int) -> str:
    return f"{n} query heads a KV head" if n > 1 else "a KV head for every query head"


def _at_the_point(report: IntensityReport) -> str:
    q, p, d = report.query, report.prefill, report.decode
    group = f" for {_grouped(q.group_size)}" if q.group_size > 1 else ""
    compared = _less(p.intensity / d.intensity, "less") if p.intensity > d.intensity else "the same"
    return (
        f"At N = {q.context:,} and d = {q.head_dim:,} {q.attention} attention{group} does {format_flops(p.flops)} on "
        f"{format_decimal(p.bytes)} in prefill, {_figures(p.intensity)} FLOP/B, and {format_flops(d.flops)} on "
        f"{format_decimal(d.bytes)} in decode, {_figures(d.intensity)} FLOP/B: {compared}."
    )


def knee(report: IntensityReport) -> int | None:
    """Smallest context at which prefill attention reaches KNEE of its limit; None where it has no limit."""
    limit = report.prefill.limit
    if limit is None:
        return None
    low, high = 0, 1
    while _prefill_intensity(report, high) < KNEE * limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _prefill_intensity(report, middle) < KNEE * limit else (low, middle)
    return high


def _prefill_intensity(report: IntensityReport, context: int) -> float:
    query = report.query
    flops, moved = attention_work(
        query.attention,
        Phase.PREFILL,
        n_keys=context,
        head_dim=query.head_dim,
        group_size=query.group_size,
        softmax_flops=query.softmax_flops,
        element_bytes=query.element_bytes,
    )
    return float(flops / moved)


def _saturation(report: IntensityReport) -> str:
    points = sorted(report.prefill_by_context, key=lambda p: p.context)
    first, last = points[0], points[-1]
    shown = f"{_figures(last.intensity)} at {last.context:,}"
    shown = f"from {_figures(first.intensity)} FLOP/B at N = {first.context:,} to {shown}"
    if first.context == last.context:
        shown = f"{_figures(last.intensity)} FLOP/B at N = {last.context:,}"
    limit, formula, at = report.prefill.limit, report.prefill.limit_formula, knee(report)
    if limit is None or formula is None or at is None:
        return f"Prefill rises with the context without a limit, {shown}: FLOPs grow with N², bytes with N."
    verb = "saturates" if last.context >= at else "rises towards a limit"
    where = "past that" if report.query.context >= at else f"still at {_percent(report.prefill.intensity / limit)}"
    return (
        f"Prefill {verb}, {shown}: S and P are moved N² at a time just as FLOPs grow with N², so it tends to "
        f"{to_text(formula)} = {limit:,.2f} FLOP/B and has {_percent(KNEE)} of that from N = {at:,} on; "
        f"N = {report.query.context:,} is {where}."
    )


def _other_algorithm(report: IntensityReport) -> str:
    flash, standard = report.prefill, report.other_prefill
    flash_decode, standard_decode = report.decode, report.other_decode
    if report.query.attention is Attention.STANDARD:
        flash, standard, flash_decode, standard_decode = standard, flash, standard_decode, flash_decode
    in_prefill, in_decode = float(standard.bytes / flash.bytes), float(standard_decode.bytes / flash_decode.bytes)
    why = "where the cache itself is the traffic" if in_decode < 1.5 else "where S and P weigh as well as the cache"
    return (
        f"Keeping S and P on the chip (FlashAttention) moves {_less(in_prefill, 'fewer bytes')} in prefill, "
        f"{_figures(flash.intensity)} against {_figures(standard.intensity)} FLOP/B, and "
        f"{_less(in_decode, 'fewer')} in decode, {why}."
    )


def _by_batch(points: tuple[DecodePoint, ...]) -> tuple[DecodePoint, DecodePoint]:
    """The points at the smallest and at the largest batch."""
    return min(points, key=lambda p: p.batch), max(points, key=lambda p: p.batch)


def _attention_by_batch(report: IntensityReport) -> str:
    first, last = _by_batch(report.decode_by_batch)
    low, high = first.attention_intensity, last.attention_intensity
    shape = "is flat" if abs(high - low) <= FLAT * high else "changes"
    text = (
        f"Decode attention {shape} in the batch, {_figures(low)} FLOP/B at B = {first.batch:,} and {_figures(high)} at "
    )
    text += f"{last.batch:,}"
    if first.batch == last.batch:
        text = f"Decode attention is at {_figures(low)} FLOP/B at B = {first.batch:,} and no batch would change that"
    text += ": every sequence reads its own K and V, so FLOPs and bytes grow alike"
    g, grouped = report.query.model.group_size, report.decode_by_batch_grouped[0].attention_intensity
    if g == report.query.group_size:
        return f"{text}."
    why = f", since K and V are read once for {g} heads" if g > 1 else ""
    return f"{text}; with {_grouped(g)}, as {report.query.model.name} has, it is {_figures(grouped)}{why}."


def _linear_by_batch(report: IntensityReport) -> str:
    first, last = _by_batch(report.decode_by_batch)
    if first.batch == last.batch:
        return (
            f"The linear layers are at {_figures(first.linear_intensity)} FLOP/B at B = {first.batch:,} and rise with "
            "the batch: their weights are read once for all of it."
        )
    gain, growth = last.linear_intensity / first.linear_intensity, last.batch / first.batch
    but = "" if gain > 0.8 * growth else ", though activations, moved for each sequence, take more and more of it"
    return (
        f"The linear layers rise {_figures(gain)} times for {_figures(growth)} times the batch, from "
        f"{_figures(first.linear_intensity)} FLOP/B at B = {first.batch:,} to {_figures(last.linear_intensity)} at "
        f"{last.batch:,}: their weights are read once for the whole batch{but}."
    )


def _step_by_batch(report: IntensityReport) -> str:
    query, (first, last) = report.query, _by_batch(report.decode_by_batch)
    text = f"The whole decode step goes from {_figures(first.step_intensity)} FLOP/B at B = {first.batch:,} to "
    text += f"{_figures(last.step_intensity)} at {last.batch:,}"
    if first.batch == last.batch:
        text = f"The whole decode step is at {_figures(last.step_intensity)} FLOP/B at B = {last.batch:,}"
    if query.model.group_size != query.group_size:
        own = _by_batch(report.decode_by_batch_grouped)[1]
        text += f" ({_figures(own.step_intensity)} with {_grouped(query.model.group_size)})"
    share, linear = last.step_intensity / last.linear_intensity, _figures(last.linear_intensity)
    if share >= 0.9:
        return f"{text}: attention over N = {query.context:,} hardly moves it from the linear layers' {linear}."
    return f"{text}: attention over N = {query.context:,} holds it to {_percent(share)} of the linear layers' {linear}."


def critical_batch(report: IntensityReport, ridge: float) -> int | None:
    """Smallest batch at which the linear layers reach `ridge` FLOP/B; None where activations prevent it."""
    query = report.query
    if query.model.layers:
        return _first_batch(lambda batch: _linear_intensity(query, batch) >= ridge)
    weights = linear_params(query.model)
    gain = 2 * weights - ridge * linear_activations(query.model) * float(query.element_bytes)
    if gain <= 0:
        return None
    return max(1, ceil(ridge * weights * float(query.weight_element_bytes) / gain))


def _linear_intensity(query: IntensityQuery, batch: int) -> float:
    """FLOPs a byte of the linear layers: a batch of a model with experts reads more of them."""
    moved = linear_bytes(
        batch=batch,
        parameters=read_params(query.model, batch),
        weight_element_bytes=query.weight_element_bytes,
        activations=linear_activations(query.model),
        element_bytes=query.element_bytes,
    )
    return float(linear_flops(batch=batch, parameters=linear_params(query.model)) / moved)


MAX_BATCH = 1 << 20


def _first_batch(reached: Callable[[int], bool]) -> int | None:
    """The smallest batch that reaches it, given that larger ones do too; None where none to a million does."""
    high = 1
    while not reached(high):
        high *= 2
        if high > MAX_BATCH:
            return None
    return bisect_left(range(high + 1), True, lo=1, key=reached)


def _from_ridge(intensity: float, ridge: float) -> str:
    if intensity >= ridge:
        return f"limited by compute, {_figures(intensity / ridge)} times above it"
    return f"limited by memory, {_figures(ridge / intensity)} times below it"


def _ridge(report: IntensityReport) -> str:
    device = report.query.device
    ridge = device.ridge()
    if ridge is None:
        return f"No ridge to compare with: bandwidth or peak of {device.name} is not known; pick one from the catalog."
    batch = critical_batch(report, ridge)
    linear = (
        f"the linear layers reach it at a batch of {format_count(batch)}"
        if batch
        else "the linear layers never reach it at these formats"
    )
    prefill, decode = report.prefill.intensity, report.decode.intensity
    return (
        f"The ridge of {device.name} lies at {_figures(ridge)} FLOP/B (bf16): prefill attention at {_figures(prefill)} "
        f"is {_from_ridge(prefill, ridge)}, decode attention at {_figures(decode)} is {_from_ridge(decode, ridge)}; "
        f"{linear}."
    )
