"""Bytes of the KV cache: per token, per request, on a rank; and the state of recurrent layers.

Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 3.3; Ainslie et al. 2023 for
n_kv_heads < n_heads. K and V of every cached token: 2 x layers x KV heads x head dimension x bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from calc.explain.terms import Term, derive, minimum
from calc.model.parts import Attention, mixers_of
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS, StorageFormat
from calc.model.tensors import kv_heads_per_rank

if TYPE_CHECKING:
    from calc.model.layers import Mixer

# Formulas


def kv_bytes_per_token(*, n_layers: Any, n_kv_heads: Any, head_dim: Any, kv_element_bytes: Any) -> Any:
    """Bytes that one token adds in all layers that cache it.

    >>> kv_bytes_per_token(n_layers=32, n_kv_heads=8, head_dim=128, kv_element_bytes=2)
    131072
    """
    return 2 * n_layers * n_kv_heads * head_dim * kv_element_bytes


def kv_bytes_per_request(*, kv_token_bytes: Any, context: Any) -> Any:
    """Bytes of a request of `context` tokens if every layer keeps all of them.

    >>> kv_bytes_per_request(kv_token_bytes=131_072, context=8192)
    1073741824
    """
    return kv_token_bytes * context


def kv_bytes_per_windowed_request(
    *,
    n_sliding_layers: Any,
    window: Any,
    n_kv_heads: Any,
    head_dim: Any,
    kv_element_bytes: Any,
    context: Any,
    n_full_layers: Any = 0,
) -> Any:
    """Bytes of a request if some layers keep only the last `window` tokens."""
    kept = n_full_layers * context + n_sliding_layers * minimum(context, window)
    return 2 * n_kv_heads * head_dim * kv_element_bytes * kept


def token_bytes(
    *, kv_element_bytes: Any, full_elements: Any = 0, latent_elements: Any = 0, window_elements: Any = 0
) -> Any:
    """Cache bytes per token in all layers that cache it."""
    return (full_elements + latent_elements + window_elements) * kv_element_bytes


def kept_formula(windowed: Mapping[int, int]) -> Callable[..., Any]:
    """Bytes per request: full layers times the context, plus each window up to its length.

    The first window has a symbol; further windows appear in the formula as numbers.
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


def rank_kv_bytes(*, kv_request_bytes: Any, n_kv_heads: Any, tp: Any) -> Any:
    """Cache bytes per request on a rank that keeps whole KV heads."""
    return kv_request_bytes / n_kv_heads * kv_heads_per_rank(n_kv_heads=n_kv_heads, tp=tp)


def state_bytes(*, state_elements: Any = 0, state_element_bytes: Any = 0, fp32_elements: Any = 0) -> Any:
    """State bytes per sequence: recurrent layers, and what is kept in fp32 whatever the format."""
    return state_elements * state_element_bytes + 4 * fp32_elements


# Elements

ONE_ROW = ("latent", "compressor")
"""Kinds that keep one row for all heads, on every rank."""


@dataclass(frozen=True, slots=True)
class CacheElements:
    """Elements per token over all layers: full, latent (full, on every rank), and by window."""

    full: int
    latent: int
    windowed: Mapping[int, int]

    @property
    def per_token(self) -> int:
        """Elements of one token in all layers that cache it."""
        return self.full + self.latent + sum(self.windowed.values())


def cache_elements(model: ModelSpec, elements: Callable[[Mixer], int] | None = None) -> CacheElements:
    """The elements of one token. `elements` says how many of a mixer's elements count (default: all)."""
    return held_elements(mixers_of(model.layers), elements)


def held_elements(mixers: Mapping[Mixer, int], elements: Callable[[Mixer], int] | None = None) -> CacheElements:
    """`cache_elements` for any mixers, with the number of each."""
    full = latent = 0
    windowed: dict[int, int] = {}
    for mixer, n in mixers.items():
        each = n * (mixer.cache_elements if elements is None else elements(mixer))
        if each and mixer.window is not None:
            windowed[mixer.window] = windowed.get(mixer.window, 0) + each
        elif mixer.kind in ONE_ROW:
            latent += each
        else:
            full += each
    return CacheElements(full, latent, windowed)


def index_elements(model: ModelSpec) -> int:
    """Elements per token that indexers of sparse attention keep in addition to the cache."""
    return sum(n * mixer.index_elements for mixer, n in mixers_of(model.layers).items())


def state_elements(model: ModelSpec) -> int:
    """Elements per sequence that recurrent layers keep, whatever its length."""
    return sum(n * mixer.state_elements for mixer, n in mixers_of(model.layers).items() if not in_fp32(mixer))


def fp32_elements(model: ModelSpec) -> int:
    """Elements per sequence kept in fp32 whatever the format: tokens that are not yet compressed."""
    return sum(n * mixer.state_elements for mixer, n in mixers_of(model.layers).items() if in_fp32(mixer))


def in_fp32(mixer: Mixer) -> bool:
    """Whether a mixer's state is always in fp32, whatever the cache format."""
    return bool(getattr(mixer, "fp32_state", False))


def rank_cache_elements(model: ModelSpec, tp: int) -> CacheElements:
    """The elements of one token on a rank of `tp`: its KV heads, and the complete latent."""
    return cache_elements(model, lambda mixer: mixer.rank_cache_elements(tp))


def only_kv_heads(model: ModelSpec) -> int | None:
    """The number of KV heads of all layers with a cache; None if it varies, or for a latent."""
    mixers = [mixer for layer in model.groups for mixer in layer.mixers if mixer.cache_elements]
    heads = {mixer.n_kv_heads if isinstance(mixer, Attention) else None for mixer in mixers}
    return next(iter(heads)) if len(heads) == 1 else None


def rank_state_term(model: ModelSpec, kv_format: StorageFormat, tp: int) -> Term | None:
    """State bytes per sequence on a rank of `tp`, with the derivation; None if no layer has a state.

    Heads are divided; Mamba-2 keeps at least one group.
    """
    return mixers_state_term("State per sequence and GPU", mixers_of(model.layers), kv_format, tp)


def mixers_state_bytes(mixers: Mapping[Mixer, int], kv_format: StorageFormat, tp: int) -> int:
    """State bytes per sequence on a rank of `tp`, of so many of each mixer."""
    term = mixers_state_term("State", mixers, kv_format, tp)
    return 0 if term is None else ceil(term.value)


def state_format(kv_format: StorageFormat) -> StorageFormat:
    """How a state is stored: like the cache, but never in less than 2 bytes (no server quantizes states)."""
    return kv_format if kv_format.bytes_per_element >= 2 else FORMATS["bf16"]


# Derivations


def pair_term(model: ModelSpec, kv_format: StorageFormat) -> tuple[Term, ...]:
    """Bytes per cache element if K and V have different formats, with the derivation; () if they have one."""
    if kv_format.pair is None:
        return ()
    from calc.model.cache_pair import mean_term

    return (mean_term(model, kv_format),)


def token_term(model: ModelSpec, kv_format: StorageFormat) -> Term:
    """Cache bytes per token, windows included, with the derivation."""
    name, each = "KV cache per token", kv_format.bytes_per_element
    if model.uniform:
        sizes = {name: getattr(model, name) for name in ("n_layers", "n_kv_heads", "head_dim")}
        return derive(name, kv_bytes_per_token, gives="kv_token_bytes", unit="B", kv_element_bytes=each, **sizes)
    elements = cache_elements(model)
    kinds = _present(
        full_elements=elements.full,
        latent_elements=elements.latent,
        window_elements=sum(elements.windowed.values()),
    )
    return derive(name, token_bytes, gives="kv_token_bytes", unit="B", kv_element_bytes=each, **kinds)


def request_term(model: ModelSpec, kv_format: StorageFormat, context: int) -> Term:
    """Cache bytes of a request of `context` tokens, windows capped, with the derivation, without the state."""
    name = f"KV cache per request, {context:,} tokens"
    given: dict[str, Any] = {"gives": "kv_request_bytes", "unit": "B"}
    if not model.uniform:
        return held_request_term(name, cache_elements(model), kv_format, context)
    if not model.n_sliding_layers:
        per_token = token_term(model, kv_format).value
        return derive(name, kv_bytes_per_request, **given, kv_token_bytes=per_token, context=context)
    sizes = {name: getattr(model, name) for name in ("n_sliding_layers", "window", "n_kv_heads", "head_dim")}
    present: dict[str, Any] = {"n_full_layers": model.n_full_layers} if model.n_full_layers else {}
    each = kv_format.bytes_per_element
    sizes |= {"kv_element_bytes": each, "context": context, **present}
    return derive(name, kv_bytes_per_windowed_request, **given, **sizes)


def rank_request_term(model: ModelSpec, kv_format: StorageFormat, context: int, tp: int) -> Term:
    """Cache bytes per request on a rank of `tp`, with the derivation, without the state."""
    name = "KV cache per request and GPU"
    n_kv_heads = only_kv_heads(model)
    if n_kv_heads is None:
        return held_request_term(name, rank_cache_elements(model, tp), kv_format, context)
    request = ceil(request_term(model, kv_format, context).value)
    return derive(name, rank_kv_bytes, unit="B", kv_request_bytes=request, n_kv_heads=n_kv_heads, tp=tp)


def _present(**numbers: int) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if value}


def held_request_term(name: str, elements: CacheElements, kv_format: StorageFormat, context: int) -> Term:
    """Cache bytes of a request whose tokens have `elements`, windows capped, with the derivation."""
    kinds = _present(full_elements=elements.full, latent_elements=elements.latent)
    if elements.windowed:
        kinds["window"], kinds["window_elements"] = next(iter(elements.windowed.items()))
    each = kv_format.bytes_per_element
    return derive(
        name,
        kept_formula(elements.windowed),
        gives="kv_request_bytes",
        unit="B",
        context=context,
        kv_element_bytes=each,
        **kinds,
    )


def state_term(model: ModelSpec, kv_format: StorageFormat) -> Term | None:
    """State bytes per sequence, with the derivation; None if no layer has a state."""
    return mixers_state_term("State per sequence", mixers_of(model.layers), kv_format, 1)


def mixers_state_term(name: str, mixers: Mapping[Mixer, int], kv_format: StorageFormat, tp: int) -> Term | None:
    """State bytes per sequence of `mixers` on a rank of `tp`: stored like the cache, or in fp32 if it always is."""
    held: dict[bool, Any] = {True: 0, False: 0}
    for mixer, n in mixers.items():
        held[in_fp32(mixer)] += n * mixer.rank_state_elements(tp)
    numbers = _present(state_elements=held[False], fp32_elements=held[True])
    if not numbers:
        return None
    if held[False]:
        numbers["state_element_bytes"] = state_format(kv_format).bytes_per_element
    return derive(name, state_bytes, gives="state_bytes", unit="B", **numbers)
