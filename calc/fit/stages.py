"""What a device of each pipeline stage holds of a model that devices share, and how many requests.

What servers do (vLLM 0.19: parallel_utils, QKVParallelLinear, VocabParallelEmbedding; SGLang's ``--dp-size`` with
data-parallel attention), in whole heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

from calc.explain.terms import Number, Term, derive
from calc.fit.degrees import ParallelSpec
from calc.fit.memory import max_batch, max_batch_with_state, shortfall
from calc.model.cache import CacheElements, held_elements, held_request_term, mixers_state_bytes
from calc.model.count import LM_HEAD, outer_tensors
from calc.model.layers import Attention, Dense, LayerSpec, Mixer, grouped, mixers_of
from calc.model.pipeline import stage_layers
from calc.model.shares import padded_vocab, shares
from calc.model.spec import ModelSpec
from calc.model.stored import StoredWeights
from calc.model.study import Study
from calc.model.tensors import EMBEDDING, KV, NORM, WHOLE, Tensor, kv_heads_per_rank
from calc.units import whole

UNLIMITED = 10**18
"""The batch of a stage that caches nothing."""


# Formulas


def rank_expert_params(*, n_experts: Any, ep: Any, expert: Any, tp: Any) -> Any:
    """Routed expert parameters per layer on a rank: the experts of the fullest of `ep` ranks, each split over tp /
    ep."""
    return (n_experts + ep - 1) // ep * expert * ep / tp


def stage_weight_bytes(
    *,
    weight_element_bytes: Any,
    tp: Any,
    whole_params: Any,
    split_params: Any = 0,
    rank_kv_params: Any = 0,
    attention_params: Any = 0,
    attention_tp: Any = 1,
    rank_experts: Any = 0,
) -> Any:
    """Weight bytes of a device: its share of divided tensors, its KV heads and experts, and what every device holds."""
    held = whole_params + rank_kv_params + rank_experts
    return _divided(held, (split_params, tp), (attention_params, attention_tp)) * weight_element_bytes


def stored_stage_weight_bytes(
    *,
    split_element_bytes: Any,
    whole_element_bytes: Any,
    tp: Any,
    whole_params: Any,
    split_params: Any = 0,
    rank_kv_params: Any = 0,
    kv_weight_element_bytes: Any = 0,
    attention_params: Any = 0,
    attention_tp: Any = 1,
    rank_experts: Any = 0,
) -> Any:
    """The same for a checkpoint: divided tensors, K and V, and what every device holds, each at its mean stored
    bytes."""
    divided = _divided(rank_experts, (split_params, tp), (attention_params, attention_tp)) * split_element_bytes
    return divided + rank_kv_params * kv_weight_element_bytes + whole_params * whole_element_bytes


def _divided(held: Any, *parts: tuple[Any, Any]) -> Any:
    """`held` plus a device's share of each of `parts`; empty parts are not shown."""
    for params, devices in parts:
        if not (isinstance(params, int) and params == 0):
            held = held + params / devices
    return held


def shared_context(*, context: Any, dcp: Any) -> Any:
    """Tokens per request on the fullest of `dcp` devices."""
    return (context + dcp - 1) // dcp


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A device of one pipeline stage. `max_batch` counts the requests whose layers of this stage it can hold."""

    index: int
    first_layer: int
    n_layers: int
    embedding: bool
    head: bool
    weight_bytes: int
    kv_bytes_per_request: Number
    state_bytes: int
    max_batch: int
    missing_bytes: int
    steps: tuple[Term, ...]

    @property
    def fits(self) -> bool:
        """Whether one request fits."""
        return self.missing_bytes == 0 and self.max_batch > 0


def stages_of(study: Study, spec: ParallelSpec) -> tuple[Stage, ...]:
    """What each stage's devices hold, first to last; `spec` must be possible (`parallel_problem`)."""
    return tuple(_stage(study, spec, part) for part in _parts(study.model, spec))


# Weights


@dataclass(slots=True)
class _Held:
    """Parameters of a stage on one rank, summed layer by layer."""

    attention: int = 0
    split: int = 0
    whole: int = 0
    own_kv: int = 0
    experts: Fraction = Fraction(0)


def _add_layer(held: _Held, layer: LayerSpec, n: int, spec: ParallelSpec) -> None:
    for mixer in layer.mixers:
        for tensor in mixer.tensors(layer.hidden_size):
            _add_attention(held, tensor, n, spec)
    for tensor in layer.rest():
        if tensor.expert:
            _add_experts(held, tensor, n, spec)
        elif tensor.share == WHOLE:
            held.whole += n * tensor.params
        else:
            held.split += n * tensor.params


def _add_attention(held: _Held, tensor: Tensor, n: int, spec: ParallelSpec) -> None:
    if tensor.share == WHOLE:
        held.whole += n * tensor.params
    elif tensor.share == KV:
        heads: int = kv_heads_per_rank(n_kv_heads=tensor.kv_heads, tp=spec.attention_tp)
        held.own_kv += n * tensor.params // tensor.kv_heads * heads
    else:
        held.attention += n * tensor.params


def _add_experts(held: _Held, tensor: Tensor, n: int, spec: ParallelSpec) -> None:
    """The experts of the fullest rank; tensors that every rank with a part of an expert holds are not divided."""
    each = tensor.rows * tensor.columns
    if tensor.share == WHOLE:
        held.whole += n * -(-tensor.copies // spec.ep) * each
    else:
        held.experts += n * rank_expert_params(n_experts=tensor.copies, ep=spec.ep, expert=each, tp=Fraction(spec.tp))


def _add_ends(held: _Held, model: ModelSpec, spec: ParallelSpec, *, first: bool, last: bool) -> None:
    """Embedding and positions on the first stage; final norm and head (a tied one as a copy) on the last."""
    vocab = padded_vocab(model.head_size, spec.tp)
    embedding = padded_vocab(model.vocab_size, spec.attention_tp) * model.embedding_width
    for tensor in outer_tensors(model):
        at_end = tensor.role == NORM or tensor.name.startswith(LM_HEAD)
        if not (last if at_end else first):
            continue
        if tensor.role == EMBEDDING:
            held.attention += embedding
        elif tensor.name.startswith(LM_HEAD):
            held.split += vocab * tensor.columns
        elif tensor.share == WHOLE:
            held.whole += tensor.params
        else:
            held.split += tensor.params
    if last and model.tied and not first:
        held.split += vocab * model.embedding_width


def _weights_term(model: ModelSpec, study: Study, spec: ParallelSpec, part: _Part) -> Term:
    held = _Held()
    for layer, n in grouped(part.layers).items():
        _add_layer(held, layer, n, spec)
    _add_ends(held, model, spec, first=part.first, last=part.last)
    if spec.dp_attention == 1:  # a single division is enough
        held.split, held.attention = held.split + held.attention, 0
    experts = held.experts.numerator if held.experts.denominator == 1 else held.experts
    numbers: dict[str, Any] = {
        "split_params": held.split,
        "rank_kv_params": held.own_kv,
        "attention_params": held.attention,
        "rank_experts": experts,
    }
    present = {name: value for name, value in numbers.items() if value}
    if held.attention:
        present["attention_tp"] = spec.attention_tp
    stored = study.weight_format.stored
    formula: Callable[..., Any] = stage_weight_bytes if stored is None else stored_stage_weight_bytes
    each: dict[str, Any] = {"weight_element_bytes": study.weight_format.bytes_per_element}
    if stored is not None:
        each = _stored_each(model, stored)
    return derive(
        f"{part.label}: weights per GPU", formula, unit="B", tp=spec.tp, whole_params=held.whole, **each, **present
    )


def _stored_each(model: ModelSpec, stored: StoredWeights) -> dict[str, Any]:
    """Mean bytes per element of divided tensors, of K and V, and of what every rank holds."""
    found = shares(model)
    kinds = (
        ("split_element_bytes", stored.split_bytes, found.split),
        ("kv_weight_element_bytes", stored.kv_bytes, sum(found.kv.values())),
        ("whole_element_bytes", stored.whole_bytes, found.whole),
    )
    return {name: whole(Fraction(n_bytes, params)) if params else 0 for name, n_bytes, params in kinds}


@dataclass(frozen=True, slots=True)
class _Part:
    """The layers of one stage."""

    index: int
    start: int
    layers: tuple[LayerSpec, ...]
    last: bool

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def label(self) -> str:
        return f"Stage {self.index + 1}"

    def mixers(self) -> dict[Mixer, int]:
        return mixers_of(self.layers)


def _parts(model: ModelSpec, spec: ParallelSpec) -> list[_Part]:
    layers, parts = model.layers, []
    owned = _shared_owners(layers)
    for index, (start, end) in enumerate(stage_layers(len(layers), spec.pp, spec.pp_layers)):
        held = layers[start:end]
        shared = _with_copies(held, owned) if owned and index else held
        parts.append(_Part(index, start, shared, index == spec.pp - 1))
    return parts


def _shared_owners(layers: tuple[LayerSpec, ...]) -> Counter[Attention | Dense]:
    """Attentions and feed-forwards whose matrices later layers also use, with the number of each."""
    every = (part for layer in layers for part in (*layer.mixers, *layer.feed_forwards))
    able = [part for part in every if isinstance(part, Attention | Dense)]
    users = {replace(part, shared=False) for part in able if part.shared}
    return Counter(part for part in able if part in users)


def _with_copies(layers: tuple[LayerSpec, ...], owned: Counter[Attention | Dense]) -> tuple[LayerSpec, ...]:
    """`layers` of a later stage with their own copies of matrices from an earlier stage, with the number of each."""
    seen: Counter[Attention | Dense] = Counter()

    def copy(part: Any) -> Any:
        if not isinstance(part, Attention | Dense):
            return part
        own = replace(part, shared=False)
        if part.shared and seen[own] >= owned[own]:
            return part
        seen[own] += 1
        return own

    return tuple(
        replace(layer, mixers=tuple(map(copy, layer.mixers)), feed_forwards=tuple(map(copy, layer.feed_forwards)))
        for layer in layers
    )


def _kv_term(study: Study, spec: ParallelSpec, part: _Part) -> tuple[Term, ...]:
    """Cache bytes per request and device, preceded by the tokens that it keeps if they are shared."""
    elements = held_elements(part.mixers(), lambda mixer: mixer.rank_cache_elements(spec.attention_tp))
    name = f"{part.label}: KV cache per request and GPU"
    if not elements.per_token:
        elements = CacheElements(0, 0, {})
    if spec.dcp == 1:
        return (held_request_term(name, elements, study.kv_format, study.context),)
    tokens = derive("Tokens of a request per GPU", shared_context, unit="tokens", context=study.context, dcp=spec.dcp)
    return tokens, held_request_term(name, elements, study.kv_format, int(tokens.value))


def _state_bytes(study: Study, spec: ParallelSpec, part: _Part) -> int:
    return mixers_state_bytes(part.mixers(), study.kv_format, spec.attention_tp)


def _batch_term(study: Study, part: _Part, weights: Number, kv: Number, state: int) -> Term:
    memory = study.device.memory_bytes
    numbers: dict[str, Any] = {"memory_bytes": memory, "weight_bytes": weights, "kv_request_bytes": kv}
    if memory < weights + kv + state:
        return derive(f"{part.label}: missing for one request", shortfall, unit="B", state_bytes=state, **numbers)
    if state:
        formula = max_batch_with_state
        return derive(f"{part.label}: max batch size", formula, unit="requests", state_bytes=state, **numbers)
    return derive(f"{part.label}: max batch size", max_batch, unit="requests", **numbers)


def _stage(study: Study, spec: ParallelSpec, part: _Part) -> Stage:
    weights, kv = _weights_term(study.model, study, spec, part), _kv_term(study, spec, part)
    state = _state_bytes(study, spec, part)
    request = kv[-1].value + state
    terms: tuple[Term, ...] = (weights, *kv)
    batch, missing = UNLIMITED, max(0, ceil(weights.value + request - study.device.memory_bytes))
    if request or missing:
        bound = _batch_term(study, part, weights.value, kv[-1].value, state)
        terms, batch = (*terms, bound), 0 if missing else int(bound.value)
    return Stage(
        index=part.index,
        first_layer=part.start,
        n_layers=len(part.layers),
        embedding=part.first,
        head=part.last,
        weight_bytes=ceil(weights.value),
        kv_bytes_per_request=kv[-1].value,
        state_bytes=state,
        max_batch=batch,
        missing_bytes=missing,
        steps=terms,
    )
