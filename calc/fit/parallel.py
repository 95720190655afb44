"""Devices that share a model: tensor, pipeline and expert parallelism, data-parallel attention, shared tokens.

What servers do (vLLM 0.19: parallel_utils, QKVParallelLinear, VocabParallelEmbedding, get_pp_indices; SGLang's
``--dp-size`` with data-parallel attention), in whole heads. The device that holds most decides: a plan names it.

`tp` devices make a pipeline stage, `pp` stages a replica. Of the `tp`, `ep` share the routed experts as whole ones
(each expert is split over tp / ep), `dp_attention` groups attend each to their own requests, and `dcp` devices share
the tokens of a request among KV heads that would only be repeated. vLLM's ``-tp t -dp d --enable-expert-parallel``
is tp = t x d, dp_attention = d, ep = t x d here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

from calc.explain.terms import Number, Term, derive
from calc.fit.memory import max_batch, max_batch_with_state, shortfall
from calc.model.cache import CacheElements, held_elements, held_request_term, mixers_state_bytes
from calc.model.checks import check_count, partition_problem
from calc.model.count import LM_HEAD, outer_tensors
from calc.model.layers import Attention, Dense, Experts, Latent, LayerSpec, Mixer, grouped, mixers_of
from calc.model.shares import VOCAB_MULTIPLE, padded_vocab, padded_vocab_term, shares
from calc.model.spec import ModelSpec
from calc.model.stored import StoredWeights
from calc.model.study import Study
from calc.model.tensors import EMBEDDING, KV, NORM, WHOLE, Tensor, kv_heads_per_rank
from calc.units import whole


def rank_expert_params(*, n_experts: Any, ep: Any, expert: Any, tp: Any) -> Any:
    """Routed parameters of a layer on a rank: the experts of the fullest of `ep`, each split over tp / ep."""
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
    """Weight bytes of a device: its part of what is divided, its own KV heads and experts, and what all hold."""
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
    """The same of a checkpoint: what is divided, K and V, what all hold, each at the mean of its stored bytes."""
    divided = _divided(rank_experts, (split_params, tp), (attention_params, attention_tp)) * split_element_bytes
    return divided + rank_kv_params * kv_weight_element_bytes + whole_params * whole_element_bytes


def _divided(held: Any, *parts: tuple[Any, Any]) -> Any:
    """`held`, and a device's part of each of `parts`; those that are nothing are not shown."""
    for params, devices in parts:
        if not (isinstance(params, int) and params == 0):
            held = held + params / devices
    return held


def shared_context(*, context: Any, dcp: Any) -> Any:
    """Tokens of a request that the fullest of `dcp` devices keeps."""
    return (context + dcp - 1) // dcp


def stage_layers(n_layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each pipeline stage as vLLM divides them: what is left over goes before the last stage, backwards.

    The first stage has the embedding and the last one the head, so that the middle takes more layers.

    >>> stage_layers(80, 3), stage_layers(61, 4)
    ((27, 27, 26), (15, 15, 16, 15))
    """
    layers = [n_layers // pp] * pp
    for i in range(2, n_layers % pp + 2):
        layers[-i] += 1
    return tuple(layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSpec:
    """How many devices share what; `pp_layers`: the layers of each stage. Raises SpecError for a number below 1."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp_attention: int = 1
    dcp: int = 1
    pp_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "ep", "dp_attention", "dcp"):
            check_count(name, getattr(self, name))

    @property
    def devices(self) -> int:
        """Devices of a replica."""
        return self.tp * self.pp

    @property
    def attention_tp(self) -> int:
        """Devices that share the attention of one request."""
        return self.tp // self.dp_attention


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
        """Whether one request does."""
        return self.missing_bytes == 0 and self.max_batch > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """What every stage holds, and which one decides. `problem`: why no server could run it (then no stages)."""

    spec: ParallelSpec
    problem: str | None
    stages: tuple[Stage, ...]
    binding: int
    max_batch: int
    fits: bool
    missing_bytes: int
    steps: tuple[Term, ...]
    notes: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Devices of a replica."""
        return self.spec.devices


# What is legal


def parallel_problem(model: ModelSpec, spec: ParallelSpec) -> str | None:
    """Why these devices cannot share this model in whole heads, experts and layers, or None if they can."""
    if spec.tp % spec.dp_attention:
        return f"{spec.tp:,} devices do not form {spec.dp_attention:,} equal attention groups"
    if spec.pp > model.n_layers:
        return f"{spec.pp:,} stages for {model.n_layers:,} layers: each stage needs one"
    if problem := partition_problem(model.n_layers, spec.pp, spec.pp_layers):
        return problem
    different = model.groups
    for mixer in dict.fromkeys(m for layer in different for m in layer.mixers):
        if problem := mixer.problem(spec.attention_tp) or _shared_tokens_problem(mixer, spec):
            return problem
    parts = dict.fromkeys(part for layer in different for part in layer.feed_forwards)
    experts = [part for part in parts if isinstance(part, Experts)]
    for part in parts:
        if isinstance(part, Dense) and (problem := part.problem(spec.tp)) is not None:
            return problem
    return _expert_problem(experts, spec)


def _expert_problem(experts: Sequence[Experts], spec: ParallelSpec) -> str | None:
    if spec.ep > 1 and not experts:
        return "the model has no routed experts to spread over devices"
    if spec.tp % spec.ep:
        return f"{spec.tp:,} devices do not form equal groups of {spec.ep:,} for the experts"
    for part in experts:
        if spec.ep > part.n_experts:
            return f"{spec.ep:,} devices for {part.n_experts:,} experts: some would hold none"
        if (problem := part.problem(spec.tp // spec.ep)) is not None:
            return problem
    return None


def _shared_tokens_problem(mixer: Mixer, spec: ParallelSpec) -> str | None:
    """Why a request's tokens cannot be shared: only heads that would be repeated free devices for that."""
    if spec.dcp == 1 or not (mixer.cache_elements or mixer.state_elements):
        return None
    if mixer.state_elements or mixer.window is not None:
        what = "a recurrent state" if mixer.state_elements else f"a window of {mixer.window:,} tokens"
        return f"{what} cannot be shared token by token (decode context parallelism is for full attention)"
    copies = spec.attention_tp // mixer.n_kv_heads if isinstance(mixer, Attention) else spec.attention_tp
    if max(1, copies) % spec.dcp:
        held = "the latent" if isinstance(mixer, Latent) else f"each of the {_kv_heads(mixer)} KV heads"
        times = "once" if copies <= 1 else f"{copies:,} times"
        return f"{held} is held {times} by {spec.attention_tp:,} devices, which {spec.dcp:,} cannot share"
    return None


def _kv_heads(mixer: Mixer) -> int:
    return mixer.n_kv_heads if isinstance(mixer, Attention) else 1


def legal_tps(model: ModelSpec, *, most: int = 64) -> tuple[tuple[int, str | None], ...]:
    """Every degree of tensor parallelism that is a power of two or legal, up to `most`, with what speaks against it."""
    shown = []
    for tp in range(1, most + 1):
        problem = parallel_problem(model, ParallelSpec(tp=tp))
        if problem is None or not tp & (tp - 1):
            shown.append((tp, problem))
    return tuple(shown)


# What a device of a stage holds


@dataclass(slots=True)
class _Held:
    """Parameters of a stage as they fall on a rank; summed up layer by layer."""

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
    """The experts of the fullest rank; what every rank with a part of an expert holds is not divided further."""
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
    if spec.dp_attention == 1:  # one division says it all
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
    """Mean bytes of an element of what is divided, of K and V, and of what every rank holds."""
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


def _parts(model: ModelSpec, pp: int, sizes: tuple[int, ...] | None) -> list[_Part]:
    layers, start, parts = model.layers, 0, []
    owned = _shared_owners(layers)
    for index, n in enumerate(sizes or stage_layers(len(layers), pp)):
        held = layers[start : start + n]
        parts.append(_Part(index, start, _with_copies(held, owned) if owned and index else held, index == pp - 1))
        start += n
    return parts


def _shared_owners(layers: tuple[LayerSpec, ...]) -> Counter[Attention | Dense]:
    """Attentions and feed-forwards whose matrices later layers use too, and how many there are of each."""
    every = (part for layer in layers for part in (*layer.mixers, *layer.feed_forwards))
    able = [part for part in every if isinstance(part, Attention | Dense)]
    users = {replace(part, shared=False) for part in able if part.shared}
    return Counter(part for part in able if part in users)


def _with_copies(layers: tuple[LayerSpec, ...], owned: Counter[Attention | Dense]) -> tuple[LayerSpec, ...]:
    """`layers` of a later stage with matrices of their own in place of an earlier stage's, each as often as it is."""
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
    """Cache bytes per request and device; the tokens that it keeps before that where they are shared."""
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


UNLIMITED = 10**18
"""The batch of a stage that keeps nothing of a request."""


def plan(study: Study, spec: ParallelSpec) -> ParallelPlan:
    """What each device holds when `study`'s model is shared as `spec` says; whole heads, whatever the policy."""
    problem = parallel_problem(study.model, spec)
    if problem is not None:
        return _impossible(spec, problem)
    stages = tuple(_stage(study, spec, part) for part in _parts(study.model, spec.pp, spec.pp_layers))
    binding = min(stages, key=lambda s: (s.max_batch, -s.missing_bytes, -s.weight_bytes))
    steps = (padded_vocab_term(study.model.vocab_size, spec.tp), *(term for stage in stages for term in stage.steps))
    return ParallelPlan(
        spec=spec,
        problem=None,
        stages=stages,
        binding=binding.index,
        max_batch=binding.max_batch * spec.dp_attention,
        fits=binding.fits,
        missing_bytes=binding.missing_bytes,
        steps=steps,
        notes=_notes(study.model, spec, stages, binding),
    )


def _impossible(spec: ParallelSpec, problem: str) -> ParallelPlan:
    return ParallelPlan(
        spec=spec,
        problem=problem,
        stages=(),
        binding=0,
        max_batch=0,
        fits=False,
        missing_bytes=0,
        steps=(),
        notes=(),
    )


def _notes(model: ModelSpec, spec: ParallelSpec, stages: tuple[Stage, ...], binding: Stage) -> tuple[str, ...]:
    notes = []
    padded = padded_vocab(model.vocab_size, spec.tp)
    if padded != model.vocab_size:
        notes.append(
            f"The vocabulary of {model.vocab_size:,} is padded to {padded:,}, a multiple of {VOCAB_MULTIPLE} and of "
            f"TP {spec.tp:,}, so that embedding and head divide."
        )
    if len(stages) > 1:
        layers = ", ".join(str(stage.n_layers) for stage in stages)
        copy = ", with a copy of the tied embedding" if model.tied else ""
        notes.append(
            f"Layers by stage: {layers}; the embedding is on the first, the head on the last{copy}. "
            f"Stage {binding.index + 1} decides."
        )
        if model.spread:
            notes.append("Which layers slide is not in the spec: they are taken as evenly spread over the stages.")
    return (*notes, *_attention_notes(model, spec))


def _attention_notes(model: ModelSpec, spec: ParallelSpec) -> list[str]:
    notes, mixers = [], mixers_of(model.layers)
    heads = [m.n_kv_heads for m in mixers if isinstance(m, Attention) and m.cache_elements]
    if heads and spec.attention_tp > min(heads):
        notes.append(
            f"{spec.attention_tp:,} devices hold {min(heads):,} KV heads, each "
            f"{spec.attention_tp // min(heads):,} times, their K and V projections too."
        )
    if spec.attention_tp > 1 and any(isinstance(m, Latent) for m in mixers):
        notes.append("The latent cache serves all heads: it is not divided by TP, only by attention groups.")
    if spec.dp_attention > 1:
        notes.append(
            f"{spec.dp_attention:,} attention groups of {spec.attention_tp:,} serve their own requests: the batch is "
            "that of all groups, and each group holds all attention weights and the embedding."
        )
    if spec.ep > 1:
        notes.append(f"Whole experts over {spec.ep:,} devices; the fullest is counted where they do not divide.")
    return notes
