"""What the intensity plots show: sentences built from, and chosen by, the computed values."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import ceil

from calc.explain.terms import Number, to_text
from calc.intensity.attention import Attention, Phase
from calc.intensity.layer_observations import layer_observations
from calc.intensity.ridges import Ridge
from calc.intensity.study import IntensityReport, phase_work
from calc.intensity.traffic import (
    DecodePoint,
    commonest_experts,
    expected_experts,
    linear_step,
)
from calc.intensity.words import figures, percent
from calc.units import format_count, format_decimal, format_flops

FLAT = 0.001
"""A series whose ends differ by less than this fraction is called flat."""
KNEE = 0.95
"""The share of a limit from which a series counts as saturated."""


def intensity_observations(report: IntensityReport) -> tuple[str, ...]:
    """What the two plots show, in sentences."""
    attention = layer_observations(report) if report.layers is not None else textbook_observations(report)
    return (*attention, _linear_by_batch(report), _step_by_batch(report), _ridge(report))


def textbook_observations(report: IntensityReport) -> tuple[str, ...]:
    """Sentences on plain attention of one head, in both phases and by batch size."""
    return (_at_the_point(report), _saturation(report), _other_algorithm(report), _attention_by_batch(report))


def _fewer_bytes(factor: float) -> str:
    """``1/9.00 of the bytes``, or ``2.1 % fewer bytes`` if the factor is near 1."""
    return f"1/{figures(factor)} of the bytes" if factor >= 1.5 else f"{100 * (1 - 1 / factor):.1f} % fewer bytes"


def _grouped(n: int) -> str:
    return f"{n} query heads per KV head" if n > 1 else "one KV head per query head"


def _at_the_point(report: IntensityReport) -> str:
    q, p, d = report.query, report.prefill, report.decode
    group = f" for {_grouped(q.group_size)}" if q.group_size > 1 else ""
    ratio = p.intensity / d.intensity
    compared = f"prefill is {figures(ratio)} times decode" if ratio > 1 else "the same in both phases"
    return (
        f"At N = {q.context:,} and d = {q.head_dim:,}, {q.attention} attention{group} needs {format_flops(p.flops)} "
        f"and moves {format_decimal(p.bytes)} in prefill ({figures(p.intensity)} FLOP/B), and needs "
        f"{format_flops(d.flops)} and moves {format_decimal(d.bytes)} in decode ({figures(d.intensity)} FLOP/B): "
        f"{compared}."
    )


def knee(report: IntensityReport) -> int | None:
    """Smallest context at which prefill attention reaches KNEE of its limit; None if it has no limit."""
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
    flops, moved = phase_work(report.query, Phase.PREFILL, context)
    return float(flops / moved)


def _saturation(report: IntensityReport) -> str:
    points = sorted(report.prefill_by_context, key=lambda p: p.context)
    first, last = points[0], points[-1]
    shown = f"{figures(last.intensity)} at {last.context:,}"
    shown = f"from {figures(first.intensity)} FLOP/B at N = {first.context:,} to {shown}"
    if first.context == last.context:
        shown = f"{figures(last.intensity)} FLOP/B at N = {last.context:,}"
    limit, formula, at = report.prefill.limit, report.prefill.limit_formula, knee(report)
    if limit is None or formula is None or at is None:
        return f"Prefill intensity rises with the context without a limit, {shown}: FLOPs grow with N², bytes with N."
    verb = "saturates" if last.context >= at else "rises towards a limit"
    here, share = report.query.context, percent(report.prefill.intensity / limit)
    where = f"N = {here:,} is past that" if here >= at else f"N = {here:,} reaches {share}"
    return (
        f"Prefill intensity {verb}, {shown}: the traffic of S and P grows with N², like the FLOPs, so the intensity "
        f"tends to {to_text(formula)} = {limit:,.2f} FLOP/B. It reaches {percent(KNEE)} of that at N = {at:,}; "
        f"{where}."
    )


def _other_algorithm(report: IntensityReport) -> str:
    flash, standard = report.prefill, report.other_prefill
    flash_decode, standard_decode = report.decode, report.other_decode
    if report.query.attention is Attention.STANDARD:
        flash, standard, flash_decode, standard_decode = standard, flash, standard_decode, flash_decode
    in_prefill, in_decode = float(standard.bytes / flash.bytes), float(standard_decode.bytes / flash_decode.bytes)
    why = "most of the traffic is the cache" if in_decode < 1.5 else "S and P are large compared with the cache"
    return (
        f"Keeping S and P on chip (FlashAttention) moves {_fewer_bytes(in_prefill)} in prefill "
        f"({figures(flash.intensity)} FLOP/B instead of {figures(standard.intensity)}) and {_fewer_bytes(in_decode)} "
        f"in decode, where {why}."
    )


def _by_batch(points: tuple[DecodePoint, ...]) -> tuple[DecodePoint, DecodePoint]:
    """The points at the smallest and at the largest batch."""
    return min(points, key=lambda p: p.batch), max(points, key=lambda p: p.batch)


def _attention_by_batch(report: IntensityReport) -> str:
    first, last = _by_batch(report.decode_by_batch)
    low, high = first.attention_intensity, last.attention_intensity
    shape = "does not depend on the batch size" if abs(high - low) <= FLAT * high else "changes with the batch size"
    text = f"Decode attention {shape} ({figures(low)} FLOP/B at B = {first.batch:,}, {figures(high)} at {last.batch:,})"
    if first.batch == last.batch:
        text = f"Decode attention has {figures(low)} FLOP/B at B = {first.batch:,} and at any other batch size"
    text += ": every sequence reads its own K and V, so FLOPs and bytes grow at the same rate"
    g, grouped = report.query.model.group_size, report.decode_by_batch_grouped[0].attention_intensity
    if g == report.query.group_size:
        return f"{text}."
    why = f", because K and V are read once for {g} heads" if g > 1 else ""
    return f"{text}. With {_grouped(g)}, as in {report.query.model.title}, it is {figures(grouped)} FLOP/B{why}."


def _linear_by_batch(report: IntensityReport) -> str:
    first, last = _by_batch(report.decode_by_batch)
    if first.batch == last.batch:
        return (
            f"The linear layers have {figures(first.linear_intensity)} FLOP/B at B = {first.batch:,}, rising with the "
            f"batch size: their weights are read once for the whole batch{_experts(report, last)}."
        )
    gain, growth = last.linear_intensity / first.linear_intensity, last.batch / first.batch
    return (
        f"The intensity of the linear layers rises {figures(gain)} times when the batch grows {figures(growth)} "
        f"times, from {figures(first.linear_intensity)} FLOP/B at B = {first.batch:,} to "
        f"{figures(last.linear_intensity)} at {last.batch:,}: their weights are read once for the whole "
        f"batch{_held_back(report, first, last) if gain < 0.8 * growth else ''}{_experts(report, last)}."
    )


def _held_back(report: IntensityReport, first: DecodePoint, last: DecodePoint) -> str:
    """Why the linear layers gain less than the batch grows: the largest part of the additional bytes."""
    weights, moved = last.weight_bytes - first.weight_bytes, last.activation_bytes - first.activation_bytes
    share, now = percent(max(weights, moved) / (weights + moved)), percent(last.activation_bytes / last.linear_bytes)
    if weights > moved:
        return (
            f", but more tokens use more experts: {figures(last.weight_bytes / first.weight_bytes)} times as many "
            f"weights are read, {share} of the additional bytes (activations are {now} of all)"
        )
    before = percent(first.activation_bytes / first.linear_bytes)
    return (
        f", but activations are moved for each sequence: {before} of the bytes at the smallest batch, {now} at the "
        "largest"
    )


def _experts(report: IntensityReport, point: DecodePoint) -> str:
    part = commonest_experts(report.query.model)
    if part is None:
        return ""
    return (
        f". If all experts are equally likely, {figures(expected_experts(part, point.batch))} of {part.n_experts:,} "
        f"experts per layer are used at B = {point.batch:,}"
    )


def _step_by_batch(report: IntensityReport) -> str:
    query, (first, last) = report.query, _by_batch(report.decode_by_batch)
    text = f"The whole decode step goes from {figures(first.step_intensity)} FLOP/B at B = {first.batch:,} to "
    text += f"{figures(last.step_intensity)} at {last.batch:,}"
    if first.batch == last.batch:
        text = f"The whole decode step has {figures(last.step_intensity)} FLOP/B at B = {last.batch:,}"
    if report.layers is None and query.model.group_size != query.group_size:
        own = _by_batch(report.decode_by_batch_grouped)[1]
        text += f" ({figures(own.step_intensity)} with {_grouped(query.model.group_size)})"
    share, linear = last.step_intensity / last.linear_intensity, figures(last.linear_intensity)
    what = "attention" if report.layers is None else "reading caches and states"
    moved = percent(last.attention_bytes / (last.attention_bytes + last.linear_bytes))
    over = f"{what} over N = {query.context:,}, {moved} of the bytes,"
    if share > 1 / 0.9:
        return f"{text}: {over} raises it to {figures(share)} times the linear layers' {linear}."
    if share >= 0.9:
        return f"{text}: {over} hardly changes the linear layers' {linear}."
    return f"{text}: {over} limits it to {percent(share)} of the linear layers' {linear}."


def critical_batch(report: IntensityReport, ridge: float) -> int | None:
    """Smallest batch at which the linear layers reach `ridge` FLOP/B; None if activations prevent it."""
    query = report.query
    weights, model = query.weights, query.model
    if commonest_experts(model) is not None:  # a larger batch reads more of them
        return _first_batch(
            lambda n: linear_step(model, n, weights=weights, element_bytes=query.element_bytes).intensity >= ridge
        )
    one = linear_step(model, 1, weights=weights, element_bytes=query.element_bytes)
    gain = float(one.flops) - ridge * float(one.activation_bytes)
    return max(1, ceil(ridge * float(one.weight_bytes) / gain)) if gain > 0 else None


MAX_BATCH = 1 << 20


def _first_batch(reached: Callable[[int], bool]) -> int | None:
    """The smallest batch that reaches it, given that larger ones also do; None if no batch up to MAX_BATCH does."""
    high = 1
    while not reached(high):
        high *= 2
        if high > MAX_BATCH:
            return None
    return bisect_left(range(high + 1), True, lo=1, key=reached)


def _from_ridge(intensity: float, ridge: float) -> str:
    if intensity >= ridge:
        return f"compute bound, {figures(intensity / ridge)} times the ridge"
    return f"memory bound, 1/{figures(ridge / intensity)} of the ridge"


def _ridge(report: IntensityReport) -> str:
    ridges = report.ridges
    if not ridges[0].common:
        (own,) = ridges
        return f"The ridge of {own.name} is {figures(own.value)} FLOP/B (bf16). {_against(report, own)}."
    values = ", ".join(f"{ridge.name} {figures(ridge.value)}" for ridge in ridges)
    others = f"the bandwidth or peak of {report.query.device.name} is not known; pick a device for its own ridge"
    against = " ".join(f"On {ridge.name.split()[0]}: {_against(report, ridge, brief=True)}." for ridge in ridges)
    return f"Ridges of common devices, FLOP/B (bf16): {values} ({others}). {against}"


def _against(report: IntensityReport, ridge: Ridge, *, brief: bool = False) -> str:
    """Which side of a ridge both phases and the linear layers lie on."""
    batch = critical_batch(report, ridge.value)
    linear = (
        f"the linear layers reach the ridge at a batch of {format_count(batch)}"
        if batch
        else "the linear layers never reach the ridge with these formats"
    )
    prefill, decode = report.shown_prefill.intensity, report.shown_decode.intensity
    first = "prefill attention" if brief else "Prefill attention"
    return (
        f"{first} ({figures(prefill)}) is {_from_ridge(prefill, ridge.value)}; decode attention ({figures(decode)}) is "
        f"{_from_ridge(decode, ridge.value)}{_crossing(report, ridge.value)}; {linear}"
    )


def _crossing(report: IntensityReport, ridge: float) -> str:
    """The remark that decode attention crosses the ridge as N grows, if it does."""
    decode = report.shown_decode
    limit: Number | None = decode.limit
    if limit is None or (limit >= ridge) == (decode.intensity >= ridge):
        return ""
    return f" at N = {report.query.context:,}, and {'above' if limit >= ridge else 'below'} it as N grows"
