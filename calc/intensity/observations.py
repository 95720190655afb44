"""What the intensity plots show: sentences that are built from, and chosen by, the computed values."""

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


def _fewer_bytes(factor: float) -> str:
    """``1/9.00 of the bytes``, or ``2.1 % fewer bytes`` where the factor is near 1."""
    return f"1/{_figures(factor)} of the bytes" if factor >= 1.5 else f"{100 * (1 - 1 / factor):.1f} % fewer bytes"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"


def _grouped(n: int) -> str:
    return f"{n} query heads per KV head" if n > 1 else "one KV head per query head"


def _at_the_point(report: IntensityReport) -> str:
    q, p, d = report.query, report.prefill, report.decode
    group = f" for {_grouped(q.group_size)}" if q.group_size > 1 else ""
    ratio = p.intensity / d.intensity
    compared = f"prefill is {_figures(ratio)} times decode" if ratio > 1 else "the same in both phases"
    return (
        f"At N = {q.context:,} and d = {q.head_dim:,}, {q.attention} attention{group} needs {format_flops(p.flops)} "
        f"and moves {format_decimal(p.bytes)} in prefill ({_figures(p.intensity)} FLOP/B), and needs "
        f"{format_flops(d.flops)} and moves {format_decimal(d.bytes)} in decode ({_figures(d.intensity)} FLOP/B): "
        f"{compared}."
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
    here, share = report.query.context, _percent(report.prefill.intensity / limit)
    where = f"N = {here:,} is past that" if here >= at else f"N = {here:,} reaches {share}"
    return (
        f"Prefill {verb}, {shown}: the traffic of S and P grows with N², as the FLOPs do, so the intensity tends to "
        f"{to_text(formula)} = {limit:,.2f} FLOP/B. It reaches {_percent(KNEE)} of that at N = {at:,}; {where}."
    )


def _other_algorithm(report: IntensityReport) -> str:
    flash, standard = report.prefill, report.other_prefill
    flash_decode, standard_decode = report.decode, report.other_decode
    if report.query.attention is Attention.STANDARD:
        flash, standard, flash_decode, standard_decode = standard, flash, standard_decode, flash_decode
    in_prefill, in_decode = float(standard.bytes / flash.bytes), float(standard_decode.bytes / flash_decode.bytes)
    why = "most of the traffic is the cache" if in_decode < 1.5 else "S and P are large beside the cache"
    return (
        f"Keeping S and P on the chip (FlashAttention) moves {_fewer_bytes(in_prefill)} in prefill "
        f"({_figures(flash.intensity)} FLOP/B instead of {_figures(standard.intensity)}) and "
        f"{_fewer_bytes(in_decode)} in decode, where {why}."
    )


def _by_batch(points: tuple[DecodePoint, ...]) -> tuple[DecodePoint, DecodePoint]:
    """The points at the smallest and at the largest batch."""
    return min(points, key=lambda p: p.batch), max(points, key=lambda p: p.batch)


def _attention_by_batch(report: IntensityReport) -> str:
    first, last = _by_batch(report.decode_by_batch)
    low, high = first.attention_intensity, last.attention_intensity
    shape = "does not depend on the batch" if abs(high - low) <= FLAT * high else "changes with the batch"
    text = (
        f"Decode attention {shape} ({_figures(low)} FLOP/B at B = {first.batch:,}, {_figures(high)} at {last.batch:,})"
    )
    if first.batch == last.batch:
        text = f"Decode attention has {_figures(low)} FLOP/B at B = {first.batch:,}, and another batch changes nothing"
    text += ": every sequence reads its own K and V, so FLOPs and bytes grow alike"
    g, grouped = report.query.model.group_size, report.decode_by_batch_grouped[0].attention_intensity
    if g == report.query.group_size:
        return f"{text}."
    why = f", because K and V are read once for {g} heads" if g > 1 else ""
    return f"{text}. With {_grouped(g)}, as in {report.query.model.title}, it is {_figures(grouped)} FLOP/B{why}."


def _linear_by_batch(report: IntensityReport) -> str:
    first, last = _by_batch(report.decode_by_batch)
    if first.batch == last.batch:
        return (
            f"The linear layers have {_figures(first.linear_intensity)} FLOP/B at B = {first.batch:,} and rise with "
            "the batch: their weights are read once for the whole batch."
        )
    gain, growth = last.linear_intensity / first.linear_intensity, last.batch / first.batch
    but = "" if gain > 0.8 * growth else ", but activations are moved for each sequence and take a growing share"
    return (
        f"The linear layers rise {_figures(gain)} times when the batch grows {_figures(growth)} times, from "
        f"{_figures(first.linear_intensity)} FLOP/B at B = {first.batch:,} to {_figures(last.linear_intensity)} at "
        f"{last.batch:,}: their weights are read once for the whole batch{but}."
    )


def _step_by_batch(report: IntensityReport) -> str:
    query, (first, last) = report.query, _by_batch(report.decode_by_batch)
    text = f"The whole decode step goes from {_figures(first.step_intensity)} FLOP/B at B = {first.batch:,} to "
    text += f"{_figures(last.step_intensity)} at {last.batch:,}"
    if first.batch == last.batch:
        text = f"The whole decode step has {_figures(last.step_intensity)} FLOP/B at B = {last.batch:,}"
    if query.model.group_size != query.group_size:
        own = _by_batch(report.decode_by_batch_grouped)[1]
        text += f" ({_figures(own.step_intensity)} with {_grouped(query.model.group_size)})"
    share, linear = last.step_intensity / last.linear_intensity, _figures(last.linear_intensity)
    if share >= 0.9:
        return f"{text}: attention over N = {query.context:,} hardly lowers the linear layers' {linear}."
    return (
        f"{text}: attention over N = {query.context:,} limits it to {_percent(share)} of the linear layers' {linear}."
    )


def critical_batch(report: IntensityReport, ridge: float) -> int | None:
    """Smallest batch at which the linear layers reach `ridge` FLOP/B; None where activations prevent it."""
    query = report.query
    if not query.model.uniform:
        return _first_batch(lambda batch: _linear_intensity(query, batch) >= ridge)
    weights = linear_params(query.model)
    gain = 2 * weights - ridge * linear_activations(query.model) * float(query.element_bytes)
    if gain <= 0:
        return None
    return max(1, ceil(ridge * weights * float(query.weight_element_bytes) / gain))


def _linear_intensity(query: IntensityQuery, batch: int) -> float:
    """FLOPs per byte of the linear layers; with experts, a larger batch reads more of them."""
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
    """The smallest batch that reaches it, given that larger ones do too; None where no batch up to MAX_BATCH does."""
    high = 1
    while not reached(high):
        high *= 2
        if high > MAX_BATCH:
            return None
    return bisect_left(range(high + 1), True, lo=1, key=reached)


def _from_ridge(intensity: float, ridge: float) -> str:
    if intensity >= ridge:
        return f"compute bound, {_figures(intensity / ridge)} times the ridge"
    return f"memory bound, 1/{_figures(ridge / intensity)} of the ridge"


def _ridge(report: IntensityReport) -> str:
    device = report.query.device
    ridge = device.ridge()
    if ridge is None:
        return f"No ridge: the bandwidth or peak of {device.name} is not known. Pick a device from the catalog."
    batch = critical_batch(report, ridge)
    linear = (
        f"the linear layers reach the ridge at a batch of {format_count(batch)}"
        if batch
        else "the linear layers never reach the ridge with these formats"
    )
    prefill, decode = report.prefill.intensity, report.decode.intensity
    return (
        f"The ridge of {device.name} is {_figures(ridge)} FLOP/B (bf16). Prefill attention ({_figures(prefill)}) is "
        f"{_from_ridge(prefill, ridge)}; decode attention ({_figures(decode)}) is {_from_ridge(decode, ridge)}; "
        f"{linear}."
    )
