"""What the loaded model's own operators achieved, as points of a roofline: FLOP/B and FLOP/s. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from calc.model.spec import ModelSpec
from calc.step.model import pass_operators
from calc.step.operators import Kind, Operator, Pass, Phase, total
from calc.step.weights import one_format
from engine.measure.own import OwnTimes
from engine.records import ModelInfo
from tui.live.predict import cache_format, spec_of

Point = tuple[float, float]
LINEAR = frozenset({Kind.QKV, Kind.OUTPUT, Kind.MLP, Kind.ROUTER})


def own_points(info: ModelInfo, own: OwnTimes) -> tuple[Point, ...]:
    """Whole steps and prompts, and the linear layers and the head if they were timed separately.

    FLOPs and bytes are calc's counts for the model, with its weights' bytes in memory.
    """
    return tuple(_points(spec_of(info), _pass(info), own))


def _pass(info: ModelInfo) -> Pass:
    """A pass of the loaded model, with its weights at their mean bytes."""
    each = Fraction(info.weight_bytes, info.n_parameters)
    cached = cache_format(info, "full").bytes_per_element
    return Pass(phase=Phase.DECODE, weight_bytes=one_format(each), kv_element_bytes=cached)


def _points(spec: ModelSpec, work: Pass, own: OwnTimes) -> Iterator[Point]:
    for step in own.steps:
        yield _point(_of(spec, work, batch=step.batch, context=step.context), step.seconds)
    for prompt in own.prompts:
        sizes = {"context": prompt.past + prompt.tokens, "new_tokens": prompt.tokens}
        yield _point(_of(spec, work, phase=Phase.PREFILL, **sizes), prompt.seconds)
    for timed, kinds in ((own.linears, LINEAR), (own.heads, frozenset({Kind.HEAD}))):
        for rows in timed:
            every = _of(spec, work, batch=rows.rows, context=1)
            yield _point([one for one in every if one.kind in kinds], rows.seconds)


def _of(spec: ModelSpec, work: Pass, **sizes: Any) -> tuple[Operator, ...]:
    return pass_operators(spec, replace(work, **sizes))


def _point(operators: Iterable[Operator], seconds: float) -> Point:
    each = list(operators)
    flops = float(total(each, "flops"))
    return flops / float(total(each, "bytes")), flops / seconds
