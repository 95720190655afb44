"""The operators of mixers except projections: positions and cache writes, attention by kind, recurrences."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from calc.explain.terms import Number
from calc.model.tensors import Attended, kv_heads_per_rank
from calc.step.between import combining
from calc.step.formulas import (
    append_bytes,
    attention_flops,
    attention_read_bytes,
    attention_write_bytes,
    cache_read_bytes,
    elementwise_flops,
    index_flops,
    index_read_bytes,
    moved_bytes,
    recurrence_flops,
    scored_read_bytes,
    scored_write_bytes,
    state_moved_bytes,
)
from calc.step.operators import Amount, Kind, Operator, Pass, Phase
from calc.units import whole

if TYPE_CHECKING:
    from calc.model.layers import Mixer

STATE_ELEMENT_BYTES = 2
"""Bytes per state element: as in the cache, but at least this many (no server quantizes states)."""
ROTATION_FLOPS = 3
"""Two products and a sum for every rotated element."""


def mixing(mixer: Mixer, count: int, work: Pass) -> list[Operator]:
    """The operators that read the caches or states of sequences: attention with its indexer, or a recurrence."""
    read = mixer.attended(absorbed=work.phase is Phase.DECODE)
    if read is None:
        return [_recurrence(mixer, count, work)] if mixer.state_elements else []
    indexer = [_indexer(read, count, work)] if read.index_heads else []
    combined = [combining(read, count, work)] if work.shared > 1 else []
    return [*indexer, attend(read, count, work), *combined]


def attend(read: Attended, count: int, work: Pass) -> Operator:
    """Attention of `count` layers with the properties in `read`.

    Each of the ranks that share a context computes the heads of all these ranks for its own part of the context.
    """
    heads = whole(Fraction(read.n_heads * work.shared, work.tp))
    n_kv_heads = kv_heads_per_rank(n_kv_heads=read.kv_heads, tp=work.tp)
    size: dict[str, Any] = {"batch": work.batch, "n_queries": work.queries}
    scored = size | {"n_heads": heads, **_scored(read, work)}
    query = size | {"n_heads": heads, "key_dim": read.key_dim, "element_bytes": work.element_bytes}
    result = size | {"n_heads": heads, "value_dim": read.value_dim, "element_bytes": work.element_bytes}
    widths = {"key_dim": read.key_dim, "value_dim": read.value_dim, "softmax_flops": work.softmax_flops}
    kept = {"n_kv_heads": n_kv_heads, "token_elements": read.token_elements, "kv_element_bytes": work.kv_element_bytes}
    reads, writes = Amount(attention_read_bytes, query), Amount(attention_write_bytes, result)
    if work.scores_in_memory:
        reads, writes = Amount(scored_read_bytes, query | scored), Amount(scored_write_bytes, result | scored)
    return Operator(
        name=read.form,
        kind=Kind.ATTENTION,
        count=count,
        flops_each=Amount(attention_flops, scored | widths),
        cache_each=Amount(cache_read_bytes, size | kept | _limited(read, work, window=read.window, chosen=read.chosen)),
        reads_each=reads,
        writes_each=writes,
    )


def _scored(read: Attended, work: Pass) -> dict[str, Any]:
    """The limits on the tokens that a query is scored with."""
    return _limited(read, work, window=read.most, **_mask(work, chunked=read.chunked))


def _mask(work: Pass, *, chunked: bool = False) -> dict[str, Any]:
    """The causal mask; a single new query needs none, because no token follows it."""
    if not work.causal or work.phase is Phase.DECODE:
        return {}
    return {"causal": True, "chunked": True} if chunked else {"causal": True}


def _limited(read: Attended, work: Pass, **limits: Any) -> dict[str, Any]:
    rows = {"ratio": read.ratio} if read.ratio > 1 else {}
    n_keys = work.context if work.shared == 1 else -(-work.context // work.shared)
    return {"n_keys": n_keys, **rows, **{name: value for name, value in limits.items() if value is not None}}


def _indexer(read: Attended, count: int, work: Pass) -> Operator:
    """The indexer scores all tokens to select those to attend to. Every rank computes all scores."""
    size: dict[str, Any] = {"batch": work.batch, **_limited(read, work)}
    queries = {"n_queries": work.queries, "index_heads": read.index_heads, "index_dim": read.index_dim}
    width = read.index_heads * read.index_dim
    moved = {"tokens": work.tokens, "elements": width, "element_bytes": work.element_bytes}
    keys = {"index_dim": read.index_dim, "index_element_bytes": read.index_element_bytes}
    return Operator(
        name=f"indexer of {read.form}",
        kind=Kind.INDEX,
        count=count,
        flops_each=Amount(index_flops, size | queries | _mask(work)),
        cache_each=Amount(index_read_bytes, size | keys),
        reads_each=Amount(moved_bytes, moved),
    )


def _recurrence(mixer: Mixer, count: int, work: Pass) -> Operator:
    """The state of every sequence is read and written once; between the tokens of a prompt it stays on the chip."""
    share = Fraction(1, work.tp)
    state = {
        "batch": work.batch,
        "state_elements": whole(Fraction(mixer.rank_state_elements(work.tp))),
        "state_element_bytes": max(work.kv_element_bytes, STATE_ELEMENT_BYTES),
    }
    flops = {"tokens": work.tokens, "state_flops": whole(mixer.state_flops * share)}
    return Operator(
        name=mixer.label,
        kind=Kind.RECURRENCE,
        count=count,
        flops_each=Amount(recurrence_flops, flops),
        cache_each=Amount(state_moved_bytes, state),
        writes_each=Amount(state_moved_bytes, state),
    )


def positions(mixer: Mixer, count: int, work: Pass, *, rotary: bool) -> list[Operator]:
    """Rotate queries and keys, and write the cache entries of new tokens."""
    read = mixer.attended()
    if read is None:
        return []
    queries: Number = whole(Fraction(read.n_heads * mixer.rope_width, work.tp)) if rotary else 0
    keys = kv_heads_per_rank(n_kv_heads=read.kv_heads, tp=work.tp) * mixer.rope_width if rotary else 0
    cached = mixer.rank_cache_elements(work.tp)
    if not queries and not cached:
        return []
    moved: dict[str, Any] = {"tokens": work.tokens, "element_bytes": work.element_bytes}
    return [
        Operator(
            name="rotary, cache" if rotary else "cache",
            kind=Kind.ROTARY,
            count=count,
            flops_each=Amount(
                elementwise_flops,
                {"tokens": work.tokens, "elements": queries + (keys if cached else 0), "element_flops": ROTATION_FLOPS},
            ),
            reads_each=Amount(moved_bytes, moved | {"elements": queries + cached}),
            writes_each=Amount(
                append_bytes,
                moved | {"rotated": queries, "cached": cached, "kv_element_bytes": work.kv_element_bytes},
            ),
        )
    ]
