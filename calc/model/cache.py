"""Bytes of the KV cache: a token, a request, a rank.

Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 3.3; Ainslie et al. 2023 for
n_kv_heads < n_heads. K and V of every cached token: 2 x layers x KV heads x head dimension x bytes.
"""

from __future__ import annotations

from typing import Any

from calc.explain.terms import Term, derive, minimum
from calc.model.parts import kv_heads_per_rank as kv_heads_per_rank
from calc.model.spec import ModelSpec
from calc.model.storage import StorageFormat


def kv_bytes_per_token(*, n_layers: Any, n_kv_heads: Any, head_dim: Any, kv_element_bytes: Any) -> Any:
    """Bytes that one token adds in all layers that cache it.

    >>> kv_bytes_per_token(n_layers=32, n_kv_heads=8, head_dim=128, kv_element_bytes=2)
    131072
    """
    return 2 * n_layers * n_kv_heads * head_dim * kv_element_bytes


def kv_bytes_per_request(*, kv_token_bytes: Any, context: Any) -> Any:
    """Bytes of a request of `context` tokens when every layer keeps them all.

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
    """Bytes of a request when some layers keep only the last `window` tokens."""
    kept = n_full_layers * context + n_sliding_layers * minimum(context, window)
    return 2 * n_kv_heads * head_dim * kv_element_bytes * kept


def token_term(model: ModelSpec, kv_format: StorageFormat) -> Term:
    """Cache bytes a token, windows included, with the derivation."""
    if model.layers:
        from calc.model.layered import layered_token_term

        return layered_token_term(model, kv_format)
    return derive(
        "KV cache per token",
        kv_bytes_per_token,
        unit="B",
        n_layers=model.n_layers,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        kv_element_bytes=kv_format.bytes_per_element,
    )


def request_term(model: ModelSpec, kv_format: StorageFormat, context: int) -> Term:
    """Cache bytes of a request of `context` tokens, windows capped, with the derivation."""
    if model.layers:
        from calc.model.layered import layered_request_term

        return layered_request_term(model, kv_format, context)
    name = f"KV cache per request, {context:,} tokens"
    if not model.n_sliding_layers:
        per_token = token_term(model, kv_format).value
        return derive(name, kv_bytes_per_request, unit="B", kv_token_bytes=per_token, context=context)
    present: dict[str, Any] = {"n_full_layers": model.n_full_layers} if model.n_full_layers else {}
    return derive(
        name,
        kv_bytes_per_windowed_request,
        unit="B",
        n_sliding_layers=model.n_sliding_layers,
        window=model.window,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        kv_element_bytes=kv_format.bytes_per_element,
        context=context,
        **present,
    )
