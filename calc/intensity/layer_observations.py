"""Sentences about the layers of a model that is not plain: the form counted, what is moved, the limits."""

from __future__ import annotations

from collections.abc import Iterator

from calc.intensity.layers import LayersCost
from calc.intensity.study import IntensityReport, Layers
from calc.intensity.words import figures, percent
from calc.model.spec import ModelSpec
from calc.step.model import mixers
from calc.step.operators import Kind, Operator, total
from calc.units import format_decimal, format_flops


def layer_observations(report: IntensityReport) -> tuple[str, ...]:
    """Sentences about the attention and the recurrences of all layers."""
    layers = report.layers
    if layers is None:
        return ()
    return (
        _at_the_point(report, layers),
        *_forms(report.query.model, layers),
        _shares(layers.decode),
        _growing(report, layers),
        _by_batch(report, layers),
    )


def _at_the_point(report: IntensityReport, layers: Layers) -> str:
    query, p, d = report.query, layers.prefill, layers.decode
    kept = "S and P are stored in memory" if query.attention == "standard" else "S and P stay on chip"
    mask = "only the lower triangle" if query.causal else "without a causal mask"
    return (
        f"At N = {query.context:,}, for one sequence, the parts of {query.model.title}'s layers that read caches and "
        f"states need {format_flops(p.flops)} and move {format_decimal(p.bytes)} in prefill ({figures(p.intensity)} "
        f"FLOP/B, {mask}), and need {format_flops(d.flops)} and move {format_decimal(d.bytes)} in decode "
        f"({figures(d.intensity)} FLOP/B); {kept}."
    )


def _forms(model: ModelSpec, layers: Layers) -> Iterator[str]:
    """What each kind of layer is counted as."""
    decode, prefill = _listed(layers.decode), _listed(layers.prefill)
    both = decode == prefill
    yield f"Counted in both phases: {decode}." if both else f"Counted in decode: {decode}. In prefill: {prefill}."
    reads = [(mixer, read) for mixer in mixers(model) if (read := mixer.attended()) is not None]
    if latent := next((read for mixer, read in reads if mixer.kind == "latent"), None):
        expanded = any("expanded" in operator.name for operator in layers.prefill.operators)
        yield (
            f"In the absorbed form, {latent.n_heads:,} heads read one row of {latent.token_elements:,} elements per "
            "token. K and V are never built: their projections are applied to queries and results "
            f"instead.{' In the expanded form, K and V are built for every head, once per token.' if expanded else ''}"
        )
    if indexed := [read for _, read in reads if read.index_heads]:
        most = max(read.chosen or 0 for _, read in reads)
        kept = "fp8" if indexed[0].index_element_bytes == 1 else "16 bits"
        yield f"An indexer scores every token with small keys in {kept}; attention then reads {most:,} of them at most."


def _listed(cost: LayersCost) -> str:
    counted = [f"{o.count:,} x {o.name}" for o in cost.operators if o.kind is not Kind.INDEX]
    return "; ".join(counted)


def _shares(cost: LayersCost) -> str:
    """Which bytes decode moves, and which kind of layer moves most."""
    moved = float(cost.bytes)
    caches = [o for o in cost.operators if o.kind is not Kind.RECURRENCE]
    states = [o for o in cost.operators if o.kind is Kind.RECURRENCE]
    cached = float(total(caches, "cache_bytes"))
    state = float(total(states, "bytes"))
    parts = [("caches", cached), ("states (read and written)", state), ("queries and results", moved - cached - state)]
    text = ", ".join(f"{percent(n / moved)} are {name}" for name, n in parts if n)
    most = max(cost.operators, key=lambda o: float(o.bytes))
    return f"Of the bytes that decode moves, {text}. {_share_of(most, cost)}"


def _share_of(most: Operator, cost: LayersCost) -> str:
    if len(cost.operators) == 1:
        return "All layers are alike."
    return (
        f"{most.count:,} x {most.name} moves {percent(float(most.bytes) / float(cost.bytes))} of them and does "
        f"{percent(float(most.flops) / float(cost.flops))} of the FLOPs."
    )


def _growing(report: IntensityReport, layers: Layers) -> str:
    points = sorted(report.prefill_by_context, key=lambda p: p.context)
    first, last = points[0], points[-1]
    prefill = f"Prefill goes from {figures(first.intensity)} FLOP/B at N = {first.context:,} to "
    prefill += f"{figures(last.intensity)} at {last.context:,}"
    if first.context == last.context:
        prefill = f"Prefill has {figures(last.intensity)} FLOP/B at N = {last.context:,}"
    return f"As N grows, decode {_tends(layers.decode)}. {prefill}, and {_tends(layers.prefill)}."


def _tends(cost: LayersCost) -> str:
    return "rises without a limit" if cost.limit is None else f"tends to {figures(cost.limit)} FLOP/B"


def _by_batch(report: IntensityReport, layers: Layers) -> str:
    batches = sorted(point.batch for point in report.decode_by_batch)
    return (
        f"Its decode intensity of {figures(layers.decode.intensity)} FLOP/B does not depend on the batch size (B = "
        f"{batches[0]:,} to {batches[-1]:,}): every sequence reads its own cache and state, so FLOPs and bytes grow "
        "at the same rate."
    )
