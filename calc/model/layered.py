"""Parameters, cache, state and tensor parallelism of models whose layers are given one by one (calc.layers).

`params`, `kv_cache` and `memory` hand over to this module where a model has layers of its own, so that their
callers need not know which kind they have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from calc.explain.terms import Expr, Term, derive, minimum
from calc.model.cache import kv_heads_per_rank
from calc.model.layers import (
    Attention,
    Dense,
    Experts,
    FeedForward,
    Latent,
    LayerSpec,
    Mixer,
    grouped,
    mixers_of,
    routed_params,
)
from calc.model.params import Parameters, embedding_params, final_norm_params, head_params, position_params
from calc.model.parts import KV, WHOLE
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS, StorageFormat

PARAMS = "parameters"


# Parameters


def group_params(
    *,
    group_layers: Any,
    mixer: Any = 0,
    feed_forward: Any = 0,
    routed: Any = 0,
    router: Any = 0,
    layer_norms: Any = 0,
) -> Any:
    """Parameters of all layers of one kind."""
    return group_layers * (mixer + feed_forward + routed + router + layer_norms)


def layered_total(
    *, embedding: Any, stack: Any, final_norm: Any = 0, positions: Any = 0, head: Any = 0, other: Any = 0
) -> Any:
    """All of it: `stack` is the sum over the kinds of layers."""
    return embedding + positions + stack + other + final_norm + head


def active_params(*, parameters: Any, idle: Any) -> Any:
    """Parameters that a token goes through."""
    return parameters - idle


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCounts:
    """Parameters of one layer by component. `idle`: of the experts that a token does not go through."""

    mixer: int
    feed_forward: int
    routed: int
    router: int
    layer_norms: int
    idle: int


def layer_counts(layer: LayerSpec) -> LayerCounts:
    """What `layer` holds."""
    h = layer.hidden_size
    dense = [part for part in layer.feed_forwards if isinstance(part, Dense)]
    experts = [part for part in layer.feed_forwards if isinstance(part, Experts)]
    each = [int(part.term(h).value) for part in experts]
    return LayerCounts(
        mixer=sum(int(mixer.term(h).value) for mixer in layer.mixers),
        feed_forward=sum(int(part.term(h).value) + part.extra_params for part in dense),
        routed=sum(part.n_experts * one for part, one in zip(experts, each, strict=True)),
        router=sum(part.router_params for part in experts),
        layer_norms=layer.norm_params,
        idle=sum((part.n_experts - part.top_k) * one for part, one in zip(experts, each, strict=True)),
    )


def _part_terms(layers: Mapping[LayerSpec, int]) -> list[Term]:
    """One term for each different part, in order of appearance; experts as one and as all of a layer."""
    terms: dict[Mixer | FeedForward, list[Term]] = {}
    for layer in layers:
        for part in (*layer.mixers, *layer.feed_forwards):
            if part in terms:
                continue
            own = part.term(layer.hidden_size)
            terms[part] = [own]
            if isinstance(part, Experts):
                name = f"{part.n_experts:,} experts, a layer"
                numbers: dict[str, Any] = {"n_experts": part.n_experts, "expert": int(own.value)}
                terms[part].append(derive(name, routed_params, unit=PARAMS, **numbers))
    return [term for some in terms.values() for term in some]


def _group_term(layer: LayerSpec, n: int, counts: LayerCounts) -> Term:
    names = ("mixer", "feed_forward", "routed", "router", "layer_norms")
    present: dict[str, Any] = {name: value for name in names if (value := getattr(counts, name))}
    name = f"{n:,} {'layer' if n == 1 else 'layers'}: {layer.label}"
    return derive(name, group_params, unit=PARAMS, group_layers=n, **present)


def _sum_term(name: str, parts: list[int], unit: str) -> Term:
    """A sum written out: its formula is the numbers themselves."""
    expression = Expr("num", (parts[0],))
    for part in parts[1:]:
        expression = Expr("+", (expression, Expr("num", (part,))))
    return Term(name=name, expression=expression, values={}, value=sum(parts), unit=unit)


def _outer_terms(model: ModelSpec) -> dict[str, Term]:
    """What is not in a layer: embedding, positions, final norm, head."""
    width = model.hidden_size if model.embedding_size is None else model.embedding_size
    size: dict[str, Any] = {"hidden_size": width}
    terms = {"embedding": derive("Embedding", embedding_params, unit=PARAMS, vocab_size=model.vocab_size, **size)}
    if model.n_learned_positions:
        terms["positions"] = derive(
            "Learned positions",
            position_params,
            unit=PARAMS,
            n_learned_positions=model.n_learned_positions,
            hidden_size=model.hidden_size,
        )
    if model.final_norm_params is None:
        norm: dict[str, Any] = {"hidden_size": model.hidden_size, "norm": model.norm}
        terms["final_norm"] = derive("Final norm", final_norm_params, unit=PARAMS, **norm)
    name = "Head (tied: the embedding serves)" if model.tied else "Head"
    head: dict[str, Any] = {"vocab_size": model.vocab_size, "tied": model.tied, "bias": model.head_bias}
    terms["head"] = derive(name, head_params, unit=PARAMS, **head, **size)
    return terms


def layered_parameters(model: ModelSpec) -> Parameters:
    """Parameter counts of a model with `layers`, exact, a term for each kind of part and of layer."""
    groups = grouped(model.layers)
    counts = {layer: layer_counts(layer) for layer in groups}
    outer = _outer_terms(model)
    values = {name: int(term.value) for name, term in outer.items()}
    if model.final_norm_params is not None:
        values["final_norm"] = model.final_norm_params
    group_terms = [_group_term(layer, n, counts[layer]) for layer, n in groups.items()]
    stack = _sum_term("All layers", [int(term.value) for term in group_terms], PARAMS)
    present: dict[str, Any] = {name: value for name, value in {**values, "other": model.other_params}.items() if value}
    total = derive("Total parameters", layered_total, unit=PARAMS, stack=int(stack.value), **present)

    def over_layers(name: str) -> int:
        return sum(n * int(getattr(counts[layer], name)) for layer, n in groups.items())

    idle = over_layers("idle")
    active = [derive("Active parameters a token", active_params, unit=PARAMS, parameters=int(total.value), idle=idle)]
    return Parameters(
        embedding=values["embedding"],
        positions=values.get("positions", 0),
        attention=over_layers("mixer"),
        mlp=over_layers("feed_forward"),
        norms=over_layers("layer_norms") + values["final_norm"],
        head=values["head"],
        total=int(total.value),
        steps=(*outer.values(), *_part_terms(groups), *group_terms, stack, total, *(active if idle else [])),
        experts=over_layers("routed"),
        other=over_layers("router") + model.other_params,
        idle=idle,
    )


# Cache and state


@dataclass(frozen=True, slots=True)
class CacheElements:
    """Elements a token, over all layers: kept whole, latent (kept whole, by every rank), and by window."""

    full: int
    latent: int
    windowed: Mapping[int, int]

    @property
    def per_token(self) -> int:
        """Elements of one token in all layers that cache it."""
        return self.full + self.latent + sum(self.windowed.values())


def cache_elements(model: ModelSpec, elements: Callable[[Mixer], int] | None = None) -> CacheElements:
    """What one token holds. `elements` says how many of a mixer's count (default: all of them)."""
    return held_elements(mixers_of(model.layers), elements)


def held_elements(mixers: Mapping[Mixer, int], elements: Callable[[Mixer], int] | None = None) -> CacheElements:
    """`cache_elements` of any mixers, how many there are of each."""
    full = latent = 0
    windowed: dict[int, int] = {}
    for mixer, n in mixers.items():
        each = n * (mixer.cache_elements if elements is None else elements(mixer))
        if isinstance(mixer, Latent):
            latent += each
        elif mixer.window is None:
            full += each
        elif each:
            windowed[mixer.window] = windowed.get(mixer.window, 0) + each
    return CacheElements(full, latent, windowed)


def index_elements(model: ModelSpec) -> int:
    """Elements a token that indexers of sparse attention keep, apart from the cache."""
    return sum(n * mixer.index_elements for mixer, n in mixers_of(model.layers).items())


def state_elements(model: ModelSpec) -> int:
    """Elements a sequence that recurrent layers keep, whatever its length."""
    return sum(n * mixer.state_elements for mixer, n in mixers_of(model.layers).items())


def token_bytes(
    *, kv_element_bytes: Any, full_elements: Any = 0, latent_elements: Any = 0, window_elements: Any = 0
) -> Any:
    """Cache bytes a token in all layers that cache it."""
    return (full_elements + latent_elements + window_elements) * kv_element_bytes


def _present(**numbers: int) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if value}


def layered_token_term(model: ModelSpec, kv_format: StorageFormat) -> Term:
    """`calc.model.cache.token_term` for layers given one by one."""
    elements = cache_elements(model)
    kinds = _present(
        full_elements=elements.full,
        latent_elements=elements.latent,
        window_elements=sum(elements.windowed.values()),
    )
    each = kv_format.bytes_per_element
    return derive("KV cache per token", token_bytes, unit="B", kv_element_bytes=each, **kinds)


def kept_formula(windowed: Mapping[int, int]) -> Callable[..., Any]:
    """Bytes of a request: what is kept whole times the context, each window up to its length.

    The first window has a symbol; where there are several, the others stand in the formula as numbers.
    """
    more = list(windowed.items())[1:]

    def kept(
        *,
        context: Any,
        kv_element_bytes: Any,
        full_elements: Any = 0,
        latent_elements: Any = 0,
        window_elements: Any = 0,
        window: Any = 0,
    ) -> Any:
        tokens = (full_elements + latent_elements) * context
        if windowed:
            tokens = tokens + window_elements * minimum(context, window)
        for other, elements in more:
            tokens = tokens + elements * minimum(context, other)
        return tokens * kv_element_bytes

    return kept


def layered_request_term(model: ModelSpec, kv_format: StorageFormat, context: int) -> Term:
    """`calc.model.cache.request_term` for layers given one by one. The state is not in it."""
    name = f"KV cache per request, {context:,} tokens"
    return held_request_term(name, cache_elements(model), kv_format, context)


def held_request_term(name: str, elements: CacheElements, kv_format: StorageFormat, context: int) -> Term:
    """Cache bytes of a request whose tokens hold `elements`, windows capped, with the derivation."""
    kinds = _present(full_elements=elements.full, latent_elements=elements.latent)
    if elements.windowed:
        kinds["window"], kinds["window_elements"] = next(iter(elements.windowed.items()))
    each = kv_format.bytes_per_element
    return derive(name, kept_formula(elements.windowed), unit="B", context=context, kv_element_bytes=each, **kinds)


def state_bytes(*, state_elements: Any, state_element_bytes: Any) -> Any:
    """Bytes of the recurrent layers' state, a sequence."""
    return state_elements * state_element_bytes


def state_format(kv_format: StorageFormat) -> StorageFormat:
    """How a state is stored: as the cache, but never in less than 2 bytes (no server quantizes states)."""
    return kv_format if kv_format.bytes_per_element >= 2 else FORMATS["bf16"]


def state_term(model: ModelSpec, kv_format: StorageFormat) -> Term | None:
    """State bytes a sequence with the derivation; None where no layer has a state."""
    elements = state_elements(model)
    if not elements:
        return None
    each = state_format(kv_format).bytes_per_element
    numbers: dict[str, Any] = {"state_elements": elements, "state_element_bytes": each}
    return derive("State per sequence", state_bytes, unit="B", **numbers)


# Tensor parallelism in whole heads


def layered_tp_problem(model: ModelSpec, tp: int) -> str | None:
    """Why `tp` GPUs cannot share the layers in whole heads, or None if they can."""
    for mixer in mixers_of(model.layers):
        if (problem := mixer.problem(tp)) is not None:
            return problem
    for layer in grouped(model.layers):
        for part in layer.feed_forwards:
            if (problem := part.problem(tp)) is not None:
                return problem
    return None


def layered_split(model: ModelSpec, total: int, tp: int) -> dict[str, int]:
    """How the parameters fall on a rank of `tp`: divided ones, its own K and V projections, and whole ones."""
    own = all_kv = whole = 0
    for layer, n in grouped(model.layers).items():
        for tensor in layer.tensors():
            if tensor.share == WHOLE:
                whole += n * tensor.params
            elif tensor.share == KV:
                all_kv += n * tensor.params
                own += n * tensor.params // tensor.kv_heads * kv_heads_per_rank(n_kv_heads=tensor.kv_heads, tp=tp)
    outer = {name: int(term.value) for name, term in _outer_terms(model).items()}
    whole += outer.get("positions", 0)
    whole += outer["final_norm"] if model.final_norm_params is None else model.final_norm_params
    return {"split_params": total - whole - all_kv, "rank_kv_params": own, "whole_params": whole}


def layered_rank_weights(
    *, split_params: Any, tp: Any, whole_params: Any, weight_element_bytes: Any, rank_kv_params: Any = 0
) -> Any:
    """Weight bytes of a rank that keeps whole KV heads; latent projections, norms and routers are on every rank."""
    return (split_params / tp + rank_kv_params + whole_params) * weight_element_bytes


def rank_weights_term(model: ModelSpec, total: int, weight_format: StorageFormat, tp: int) -> Term:
    """Weight bytes of a rank with the derivation."""
    numbers: dict[str, Any] = {
        **{name: value for name, value in layered_split(model, total, tp).items() if value or name != "rank_kv_params"},
        "weight_element_bytes": weight_format.bytes_per_element,
    }
    return derive("Weights per GPU", layered_rank_weights, unit="B", tp=tp, **numbers)


def rank_cache_elements(model: ModelSpec, tp: int) -> CacheElements:
    """What one token holds on a rank of `tp`."""
    return cache_elements(model, lambda mixer: mixer.rank_cache_elements(tp))


def rank_request_term(model: ModelSpec, kv_format: StorageFormat, context: int, tp: int) -> Term:
    """Cache bytes a request on a rank: its KV heads, and the whole of a latent. The state is not in it."""
    return held_request_term("KV cache per request and GPU", rank_cache_elements(model, tp), kv_format, context)


def rank_state_bytes(model: ModelSpec, kv_format: StorageFormat, tp: int) -> int:
    """State bytes a sequence on a rank, heads divided."""
    elements = sum(n * mixer.rank_state_elements(tp) for mixer, n in mixers_of(model.layers).items())
    return ceil(elements * state_format(kv_format).bytes_per_element)


# Work of a token


def layered_linear_params(model: ModelSpec) -> int:
    """Weights that a token is multiplied with: all of its layers' but norms and idle experts, and the head."""
    inside = sum(
        n * (c.mixer + c.feed_forward + c.routed + c.router - c.idle)
        for layer, n in grouped(model.layers).items()
        for c in [layer_counts(_unshared(layer))]
    )
    return inside + model.vocab_size * (model.embedding_size or model.hidden_size)


def layered_read_params(model: ModelSpec, batch: int) -> float:
    """Weights that a step of `batch` tokens reads: those a token is multiplied with, and every expert that one hits."""
    counts = ((n, layer_counts(_unshared(layer))) for layer, n in grouped(model.layers).items())
    others = sum(n * c.idle * share_of_others(c.idle / c.routed, batch) for n, c in counts if c.idle)
    return layered_linear_params(model) + others


def share_of_others(idle_share: float, batch: int) -> float:
    """1 - i^(B-1): of the experts that one token leaves idle, the share that B - 1 further tokens are expected to hit.

    With i = 1 - k/E that makes E (1 - (1 - k/E)^B) experts in all, each token's k as likely as any others.

    >>> share_of_others(6 / 8, 1), 2 + 6 * share_of_others(6 / 8, 4)
    (0.0, 5.46875)
    """
    return 1 - idle_share ** (batch - 1)


def _unshared(layer: LayerSpec) -> LayerSpec:
    """`layer` with matrices of its own in place of an earlier layer's: what a token is multiplied with."""
    if not any(getattr(part, "shared", False) for part in (*layer.mixers, *layer.feed_forwards)):
        return layer
    mixers = tuple(replace(m, shared=False) if isinstance(m, Attention) else m for m in layer.mixers)
    parts = tuple(replace(p, shared=False) if isinstance(p, Dense) else p for p in layer.feed_forwards)
    return replace(layer, mixers=mixers, feed_forwards=parts)


def attention_heads(model: ModelSpec) -> int:
    """Query heads of all layers that attend over a cache."""
    return sum(n * m.n_heads for m, n in mixers_of(model.layers).items() if isinstance(m, Attention | Latent))
