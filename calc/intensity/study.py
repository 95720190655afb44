"""The arithmetic-intensity study: both phases, both sweeps, and the observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from calc.errors import SpecError
from calc.explain.terms import Number
from calc.intensity.attention import Attention, Phase, PhaseCost, attention_work, phase_cost
from calc.intensity.layers import LayersCost, is_plain, layers_cost, layers_work
from calc.intensity.ridges import Ridge, ridges_of
from calc.intensity.traffic import DecodePoint, Linear, attending_heads, linear_step, point_of
from calc.model.checks import check_count
from calc.model.edit import edit
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.study import DeviceSpec
from calc.step.operators import Pass
from calc.step.weights import WeightBytes, as_stored, one_format
from calc.units import whole

DEFAULT_CONTEXTS = tuple(2**i for i in range(6, 15))
DEFAULT_BATCHES = tuple(2**i for i in range(9))
MAX_SOFTMAX_FLOPS = 10**6


def default_attention(model: ModelSpec) -> Attention:
    """Algorithm 0 for plain attention; the kernels of other kinds all keep S and P on chip."""
    return Attention.STANDARD if is_plain(model) else Attention.FLASH


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityQuery:
    """What to study: `context` is N, `head_dim` is d; `group_size` query heads share a KV head.

    If the layers of the model are not all plain, they are counted as they are; `head_dim` and `group_size` then apply
    only to the textbook form. `stored`: weights are read as the model's checkpoint stores each part.
    """

    model: ModelSpec
    device: DeviceSpec
    attention: Attention = Attention.STANDARD
    context: int = 1024
    head_dim: int = 128
    group_size: int = 1
    element_bytes: Number = 2
    weight_element_bytes: Number = FORMATS["bf16"].bytes_per_element
    stored: bool = False
    softmax_flops: Number = 5
    causal: bool = False
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
        if not 0 <= self.softmax_flops <= MAX_SOFTMAX_FLOPS:
            raise SpecError("softmax_flops", f"softmax_flops must be from 0 to a million, not {self.softmax_flops}")

    @property
    def weights(self) -> WeightBytes:
        """Bytes per weight when it is read."""
        return as_stored(self.model) if self.stored else one_format(self.weight_element_bytes)

    def work(self, phase: Phase, *, batch: Any = 1, context: Any = None) -> Pass:
        """A pass of the model's attention as it is studied."""
        return Pass(
            phase=phase,
            batch=batch,
            context=self.context if context is None else context,
            causal=self.causal,
            scores_in_memory=self.attention is Attention.STANDARD,
            softmax_flops=self.softmax_flops,
            element_bytes=self.element_bytes,
            kv_element_bytes=self.element_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPoint:
    """Prefill attention at one context length, for one KV head or for all layers of a model that is not plain."""

    context: int
    flops: Number
    bytes: Number
    intensity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Both phases of a model whose layers are not all plain: all layers, one sequence."""

    prefill: LayersCost
    decode: LayersCost


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityReport:
    """Costs of both phases at the query's N and d, the sweeps, and the same costs of the other algorithm.

    `decode_by_batch` uses the query's group size (1: multi-head attention), `decode_by_batch_grouped` the model's own.
    `layers` is None for plain attention; otherwise both sweeps are the same and cover all layers.
    """

    query: IntensityQuery
    prefill: PhaseCost
    decode: PhaseCost
    other_prefill: PhaseCost
    other_decode: PhaseCost
    prefill_by_context: tuple[ContextPoint, ...]
    decode_by_batch: tuple[DecodePoint, ...]
    decode_by_batch_grouped: tuple[DecodePoint, ...]
    ridges: tuple[Ridge, ...]
    layers: Layers | None = None

    @property
    def shown_prefill(self) -> PhaseCost | LayersCost:
        """Prefill as shown: for all layers if they are not plain."""
        return self.prefill if self.layers is None else self.layers.prefill

    @property
    def shown_decode(self) -> PhaseCost | LayersCost:
        """Decode as shown."""
        return self.decode if self.layers is None else self.layers.decode


def _cost(query: IntensityQuery, kind: Attention, phase: Phase) -> PhaseCost:
    return phase_cost(kind, phase, context=query.context, element_bytes=query.element_bytes, **_sizes(query))


def _sizes(query: IntensityQuery) -> dict[str, Any]:
    names = ("head_dim", "group_size", "softmax_flops", "causal")
    return {name: getattr(query, name) for name in names}


def _linear_steps(query: IntensityQuery, model: ModelSpec) -> dict[int, Linear]:
    """The linear layers at every batch."""
    weights = query.weights
    return {n: linear_step(model, n, weights=weights, element_bytes=query.element_bytes) for n in query.batches}


def _by_batch(
    query: IntensityQuery, model: ModelSpec, linear: Mapping[int, Linear], group_size: int
) -> tuple[DecodePoint, ...]:
    per_kv_head = phase_work(query, Phase.DECODE, query.context, group_size=group_size)
    heads = Fraction(attending_heads(model), group_size)
    return tuple(
        point_of(n, linear[n], attention_flops=n * heads * per_kv_head[0], attention_bytes=n * heads * per_kv_head[1])
        for n in query.batches
    )


def phase_work(query: IntensityQuery, phase: Phase, context: int, **changes: Any) -> tuple[Any, Any]:
    """(FLOPs, bytes) of plain attention for one KV head over `context` tokens."""
    sizes = _sizes(query) | changes
    return attention_work(query.attention, phase, n_keys=context, element_bytes=query.element_bytes, **sizes)


def _point(context: int, flops: Any, moved: Any) -> ContextPoint:
    flops, moved = Fraction(flops), Fraction(moved)
    return ContextPoint(context=context, flops=whole(flops), bytes=whole(moved), intensity=float(flops / moved))


def intensity_report(query: IntensityQuery) -> IntensityReport:
    """Everything the intensity pane and ``kvscope intensity`` show."""
    return textbook_report(query) if is_plain(query.model) else _layered_report(query)


def textbook_report(query: IntensityQuery) -> IntensityReport:
    """The study of plain attention over the whole context, whatever the layers of the model are."""
    model = edit(query.model, head_dim=query.head_dim) if query.model.uniform else query.model
    linear = _linear_steps(query, model)
    return IntensityReport(
        prefill_by_context=tuple(_point(n, *phase_work(query, Phase.PREFILL, n)) for n in query.contexts),
        decode_by_batch=_by_batch(query, model, linear, query.group_size),
        decode_by_batch_grouped=_by_batch(query, model, linear, query.model.group_size),
        **_textbook_costs(query),
    )


def _textbook_costs(query: IntensityQuery) -> dict[str, Any]:
    other = Attention.FLASH if query.attention is Attention.STANDARD else Attention.STANDARD
    return {
        "query": query,
        "prefill": _cost(query, query.attention, Phase.PREFILL),
        "decode": _cost(query, query.attention, Phase.DECODE),
        "other_prefill": _cost(query, other, Phase.PREFILL),
        "other_decode": _cost(query, other, Phase.DECODE),
        "ridges": ridges_of(query.device),
    }


def _layered_report(query: IntensityQuery) -> IntensityReport:
    """The study of a model whose layers are not all plain."""
    model = query.model
    prompts = (layers_work(model, query.work(Phase.PREFILL, context=n)) for n in query.contexts)
    linear = _linear_steps(query, model)
    batches = tuple(_layered_point(query, n, linear[n]) for n in query.batches)
    return IntensityReport(
        prefill_by_context=tuple(_point(n, *work) for n, work in zip(query.contexts, prompts, strict=True)),
        decode_by_batch=batches,
        decode_by_batch_grouped=batches,
        layers=Layers(
            prefill=layers_cost(model, query.work(Phase.PREFILL)), decode=layers_cost(model, query.work(Phase.DECODE))
        ),
        **_textbook_costs(query),
    )


def _layered_point(query: IntensityQuery, batch: int, linear: Linear) -> DecodePoint:
    flops, moved = layers_work(query.model, query.work(Phase.DECODE, batch=batch))
    return point_of(batch, linear, attention_flops=flops, attention_bytes=moved)
