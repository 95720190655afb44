"""The arithmetic-intensity study: both phases, both sweeps, and what they show."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from calc.errors import SpecError
from calc.explain.terms import Number
from calc.intensity.attention import Attention, Phase, PhaseCost, attention_work, phase_cost
from calc.intensity.traffic import DecodePoint, decode_series
from calc.model.spec import DeviceSpec, ModelSpec, check_count, edit
from calc.model.storage import FORMATS, whole

DEFAULT_CONTEXTS = tuple(2**i for i in range(6, 15))
DEFAULT_BATCHES = tuple(2**i for i in range(9))


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityQuery:
    """What to study: `context` is N, `head_dim` is d; `group_size` query heads share a KV head."""

    model: ModelSpec
    device: DeviceSpec
    attention: Attention = Attention.STANDARD
    context: int = 1024
    head_dim: int = 128
    group_size: int = 1
    element_bytes: Number = 2
    weight_element_bytes: Number = FORMATS["bf16"].bytes_per_element
    softmax_flops: int = 5
    contexts: tuple[int, ...] = DEFAULT_CONTEXTS
    batches: tuple[int, ...] = DEFAULT_BATCHES

    def __post_init__(self) -> None:
        for name in ("context", "head_dim", "group_size"):
            check_count(name, getattr(self, name))
        for name in ("contexts", "batches"):
            if not getattr(self, name):
                raise SpecError(name, f"{name} needs whole numbers of at least 1, such as 1..256")
            for value in getattr(self, name):
                check_count(name, value)
        for name in ("element_bytes", "weight_element_bytes"):
            if not 0 < getattr(self, name) <= 64:
                raise SpecError(name, f"{name} must be above 0 and at most 64, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPoint:
    """Prefill attention of one KV head at one context length."""

    context: int
    flops: int
    bytes: Number
    intensity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityReport:
    """Costs of both phases at the query's N and d, the sweeps, and the same costs of the other algorithm.

    `decode_by_batch` uses the query's group size (1: multi-head attention); `decode_by_batch_grouped` the
    model's own.
    """

    query: IntensityQuery
    prefill: PhaseCost
    decode: PhaseCost
    other_prefill: PhaseCost
    other_decode: PhaseCost
    prefill_by_context: tuple[ContextPoint, ...]
    decode_by_batch: tuple[DecodePoint, ...]
    decode_by_batch_grouped: tuple[DecodePoint, ...]


def _cost(query: IntensityQuery, kind: Attention, phase: Phase) -> PhaseCost:
    return phase_cost(
        kind,
        phase,
        context=query.context,
        head_dim=query.head_dim,
        group_size=query.group_size,
        element_bytes=query.element_bytes,
        softmax_flops=query.softmax_flops,
    )


def _by_batch(query: IntensityQuery, group_size: int) -> tuple[DecodePoint, ...]:
    model = edit(query.model, head_dim=query.head_dim) if query.model.uniform else query.model
    return decode_series(
        model,
        query.batches,
        head_dim=query.head_dim,
        context=query.context,
        group_size=group_size,
        kind=query.attention,
        weight_element_bytes=query.weight_element_bytes,
        element_bytes=query.element_bytes,
        softmax_flops=query.softmax_flops,
    )


def _context_point(query: IntensityQuery, context: int) -> ContextPoint:
    flops, moved = attention_work(
        query.attention,
        Phase.PREFILL,
        n_keys=context,
        head_dim=query.head_dim,
        group_size=query.group_size,
        softmax_flops=query.softmax_flops,
        element_bytes=query.element_bytes,
    )
    exact = Fraction(moved)
    return ContextPoint(context=context, flops=flops, bytes=whole(exact), intensity=float(flops / exact))


def intensity_report(query: IntensityQuery) -> IntensityReport:
    """Everything the intensity pane and ``kvscope intensity`` show."""
    other = Attention.FLASH if query.attention is Attention.STANDARD else Attention.STANDARD
    return IntensityReport(
        query=query,
        prefill=_cost(query, query.attention, Phase.PREFILL),
        decode=_cost(query, query.attention, Phase.DECODE),
        other_prefill=_cost(query, other, Phase.PREFILL),
        other_decode=_cost(query, other, Phase.DECODE),
        prefill_by_context=tuple(_context_point(query, n) for n in query.contexts),
        decode_by_batch=_by_batch(query, query.group_size),
        decode_by_batch_grouped=_by_batch(query, query.model.group_size),
    )
