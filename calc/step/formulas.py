"""The formulas of operators: plain functions over plain operators, of one run on one rank.

A multiply-add is two FLOPs. Sources: Pope et al. 2022, section 3 (linear layers and attention); Dao et al. 2022
(standard attention, which writes scores to memory, and attention that keeps them on the chip); DeepSeek-V2 2024,
section 2.1 (latent attention, absorbed and expanded); Shazeer et al. 2017 (experts).
"""

from __future__ import annotations

from typing import Any

from calc.explain.terms import Expr, half, minimum

# Linear layers


def product_flops(*, tokens: Any, matrix_params: Any) -> Any:
    """A multiply and an add per weight and token."""
    return 2 * tokens * matrix_params


def matrix_bytes(*, matrix_params: Any, weight_element_bytes: Any) -> Any:
    """Weights, read once for all tokens."""
    return matrix_params * weight_element_bytes


def moved_bytes(*, tokens: Any, elements: Any, element_bytes: Any) -> Any:
    """One vector of `elements` per token."""
    return tokens * elements * element_bytes


def experts_hit(*, tokens: Any, n_experts: Any, top_k: Any, idle_share: Any) -> Any:
    """Expected number of distinct experts that `tokens` use, if each token chooses its k of E experts uniformly.

    Each token leaves the share i = 1 - k/E of the experts idle; all T tokens together leave iᵀ. The result is
    E (1 - iᵀ).

    >>> experts_hit(tokens=1, n_experts=8, top_k=2, idle_share=0.75), experts_hit(
    ...     tokens=4, n_experts=8, top_k=2, idle_share=0.75)
    (2.0, 5.46875)
    """
    return top_k + (n_experts - top_k) * (1 - idle_share ** (tokens - 1))


def expert_bytes(
    *, tokens: Any, n_experts: Any, top_k: Any, idle_share: Any, matrix_params: Any, weight_element_bytes: Any
) -> Any:
    """Weights of the experts expected to be used."""
    hit = experts_hit(tokens=tokens, n_experts=n_experts, top_k=top_k, idle_share=idle_share)
    return hit * matrix_params * weight_element_bytes


# Attention


def keys_seen(*, n_keys: Any, window: Any = None, ratio: Any = None) -> Any:
    """Tokens (or rows of `ratio` tokens) visible to the last query: all of them, or at most `window`."""
    rows = n_keys if ratio is None else n_keys // ratio
    return rows if window is None else minimum(rows, window)


def keys_read(*, n_queries: Any, n_keys: Any, window: Any = None, chosen: Any = None, ratio: Any = None) -> Any:
    """Tokens (or rows) whose K and V are read for all queries of a sequence: those visible to any query, each once."""
    rows = n_keys if ratio is None else n_keys // ratio
    if _is_whole(n_queries, n_keys):
        return rows
    if chosen is not None:
        return minimum(rows, chosen * n_queries)
    return rows if window is None else minimum(rows, window + n_queries - 1)


def pairs(
    *, n_queries: Any, n_keys: Any, window: Any = None, causal: bool = False, chunked: bool = False, ratio: Any = None
) -> Any:
    """Number of attention scores per head and sequence.

    If not `causal`, every query counts as many tokens as the last one sees. `chunked`: a causal query sees only the
    tokens of its own chunk.

    >>> pairs(n_queries=5, n_keys=5), pairs(n_queries=5, n_keys=5, causal=True)
    (25, 15)
    >>> pairs(n_queries=5, n_keys=5, window=2, causal=True), pairs(
    ...     n_queries=5, n_keys=5, window=2, causal=True, chunked=True)
    (9, 7)
    """
    if not causal:
        return n_queries * keys_seen(n_keys=n_keys, window=window, ratio=ratio)
    if window is None and ratio is None:  # the lower triangle, plus full rows over the earlier tokens
        return half(n_queries * (2 * n_keys - n_queries + 1))

    def first(n: Any) -> Any:
        if ratio is not None:
            return _row_pairs(n, window, ratio)
        return _chunked_pairs(n, window) if chunked else _windowed_pairs(n, window)

    return first(n_keys) if _is_whole(n_queries, n_keys) else first(n_keys) - first(n_keys - n_queries)


def _is_whole(n_queries: Any, n_keys: Any) -> bool:
    """Whether a formula covers a whole prompt: both sizes are one symbol. (With numbers, the result is the same.)"""
    return n_queries is n_keys and isinstance(n_keys, Expr)


def _windowed_pairs(n: Any, window: Any) -> Any:
    """Scores of the first n queries, each with the last `window` tokens: a triangle, then full rows."""
    rising = minimum(n, window)
    return half(rising * (rising + 1)) + window * (n - rising)


def _chunked_pairs(n: Any, window: Any) -> Any:
    """Scores of the first n queries, each with the tokens of its own chunk: triangles."""
    chunks = n // window
    rest = n - chunks * window
    return chunks * half(window * (window + 1)) + half(rest * (rest + 1))


def _row_pairs(n: Any, most: Any, ratio: Any) -> Any:
    """Scores of the first n queries with complete rows only: one more row every `ratio` queries, up to `most`."""
    rising = n if most is None else minimum(n, (most + 1) * ratio - 1)
    rows = rising // ratio
    steps = ratio * half(rows * (rows - 1)) + rows * (rising - rows * ratio + 1)
    return steps if most is None else steps + most * (n - rising)


def attention_flops(
    *, batch: Any, n_heads: Any, key_dim: Any, value_dim: Any, softmax_flops: Any, **scored: Any
) -> Any:
    """Scores, softmax and weighted values of every head."""
    return batch * n_heads * pairs(**scored) * (2 * key_dim + 2 * value_dim + softmax_flops)


def cache_read_bytes(*, batch: Any, n_kv_heads: Any, token_elements: Any, kv_element_bytes: Any, **keys: Any) -> Any:
    """K and V (or the latent) of every sequence, read once for the heads that share them."""
    return batch * keys_read(**keys) * n_kv_heads * token_elements * kv_element_bytes


def attention_read_bytes(*, batch: Any, n_queries: Any, n_heads: Any, key_dim: Any, element_bytes: Any) -> Any:
    """The queries."""
    return batch * n_queries * n_heads * key_dim * element_bytes


def attention_write_bytes(*, batch: Any, n_queries: Any, n_heads: Any, value_dim: Any, element_bytes: Any) -> Any:
    """The results."""
    return batch * n_queries * n_heads * value_dim * element_bytes


def scored_read_bytes(
    *, batch: Any, n_queries: Any, n_heads: Any, key_dim: Any, element_bytes: Any, **scored: Any
) -> Any:
    """The queries; scores S and weights P come back from memory."""
    each = n_queries * key_dim + 2 * pairs(n_queries=n_queries, **scored)
    return batch * n_heads * each * element_bytes


def scored_write_bytes(
    *, batch: Any, n_queries: Any, n_heads: Any, value_dim: Any, element_bytes: Any, **scored: Any
) -> Any:
    """The results; scores S and weights P go to memory."""
    each = n_queries * value_dim + 2 * pairs(n_queries=n_queries, **scored)
    return batch * n_heads * each * element_bytes


def index_flops(*, batch: Any, index_heads: Any, index_dim: Any, **scored: Any) -> Any:
    """Scores of an indexer: a dot product per head and token, ReLU, then a weighted sum over the heads."""
    return batch * index_heads * pairs(**scored) * (2 * index_dim + 3)


def index_read_bytes(*, batch: Any, n_keys: Any, index_dim: Any, index_element_bytes: Any, ratio: Any = None) -> Any:
    """One key per token (or row), read once for all heads."""
    return batch * keys_seen(n_keys=n_keys, ratio=ratio) * index_dim * index_element_bytes


# Recurrences


def recurrence_flops(*, tokens: Any, state_flops: Any) -> Any:
    """One step of the recurrence per token."""
    return tokens * state_flops


def state_moved_bytes(*, batch: Any, state_elements: Any, state_element_bytes: Any) -> Any:
    """The state of every sequence, moved once."""
    return batch * state_elements * state_element_bytes


# Elementwise


def elementwise_flops(*, tokens: Any, elements: Any, element_flops: Any) -> Any:
    """A few FLOPs for each element."""
    return tokens * elements * element_flops


def append_bytes(*, tokens: Any, rotated: Any, cached: Any, element_bytes: Any, kv_element_bytes: Any) -> Any:
    """Rotated queries, and the cache entries of new tokens."""
    return tokens * (rotated * element_bytes + cached * kv_element_bytes)


# Between ranks


def all_reduce_bytes(*, tokens: Any, elements: Any, element_bytes: Any, ring_share: Any) -> Any:
    """Sent by a rank in a ring of X: X - 1 steps of reduce-scatter and X - 1 of all-gather, 1/X of the data each."""
    return tokens * elements * element_bytes * ring_share


def exchanged_bytes(*, tokens: Any, elements: Any, element_bytes: Any, copies: Any, ring_share: Any) -> Any:
    """Tokens of a rank's attention group, sent to the ranks that need them and back; X - 1 of X are other ranks."""
    return tokens * elements * element_bytes * copies * ring_share


def sent_bytes(*, tokens: Any, elements: Any, element_bytes: Any) -> Any:
    """One vector per token, sent to another rank."""
    return tokens * elements * element_bytes
