"""Attention of a layer, from its matrices and the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calc.errors import SpecError
from calc.model.parts import Attention
from calc.sources.gguf.facts import Block, Facts, Undetermined

HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"
SHARED_KV = "attention.shared_kv_layers"
PICKED, BLOCK_SIZE = "attention.indexer.top_k", "attention.indexer.block_size"
"""Blocks that an indexer picks, and their tokens; without a size it picks tokens."""
KEEPS_FROM_START: Mapping[str, int] = {"gemma3n": 20}
"""Layers from the first on that have a cache of their own, where llama.cpp writes their number into its code."""


def attention(facts: Facts, block: Block, *, window: int | None, chunked: bool, n_layers: int) -> Attention:
    """The attention of a layer with attn_q, or with attn_qkv. Raises Undetermined."""
    i = block.index
    n_heads, n_kv_heads = heads(facts, i)
    shared = i >= _first_shared(facts, n_layers)
    head_dim, value_dim = _widths(facts, block, n_heads, n_kv_heads, sliding=window is not None)
    queries = block.rows("attn_q") if "attn_q" in block else _fused_queries(block, n_kv_heads, head_dim, value_dim)
    fused = "attn_qkv" in block
    try:
        return Attention(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            window=window,
            chunked=chunked and window is not None,
            qkv_bias=block.biased("attn_q", "attn_k", "attn_v", "attn_qkv"),
            o_bias=block.biased("attn_output"),
            gated=queries == 2 * n_heads * head_dim,
            keys=not shared,
            values=not shared and (fused or "attn_v" in block),
            **_block_indexer(facts, block),
        )
    except SpecError as error:
        raise Undetermined(f"layer {i}: {error}") from None


def _block_indexer(facts: Facts, block: Block) -> dict[str, Any]:
    """Heads, width and tokens of an indexer that picks blocks; the width alone where the blocks are not stated."""
    if "indexer.k_proj" not in block:
        return {}
    width, size, blocks = block.rows("indexer.k_proj"), facts.maybe(BLOCK_SIZE), facts.maybe(PICKED)
    if not size or not blocks:
        return {"index_dim": width}
    heads = block.rows("indexer.q_proj") // width
    return {"index_dim": width, "index_heads": heads, "index_topk": blocks * size}


def heads(facts: Facts, layer: int) -> tuple[int, int]:
    """Query heads and KV heads of a layer; where the latter are not stated, there is one for each query head."""
    n_heads = facts.at(HEADS, layer)
    if not n_heads:
        raise facts.missing(HEADS)
    n_kv_heads = facts.at(KV_HEADS, layer) if facts.get(KV_HEADS) is not None else n_heads
    if not n_kv_heads:
        raise Undetermined(f"layer {layer} has attention, but {facts.architecture}.{KV_HEADS} says 0")
    return n_heads, n_kv_heads


def _first_shared(facts: Facts, n_layers: int) -> int:
    """The first layer that reads another layer's cache."""
    stated = facts.maybe(SHARED_KV)
    if stated is not None:
        return n_layers - stated
    return KEEPS_FROM_START.get(facts.architecture, n_layers)


def _stated(facts: Facts, key: str, *, sliding: bool) -> int | None:
    """The width that the metadata gives a head of a layer."""
    own = facts.maybe(f"attention.{key}_length_swa") if sliding else None
    return own or facts.maybe(f"attention.{key}_length") or None


def _widths(facts: Facts, block: Block, n_heads: int, n_kv_heads: int, *, sliding: bool) -> tuple[int, int]:
    """Widths of a key and of a value, by the rows of the matrices, or where they are one, by the metadata."""
    key, value = (_stated(facts, name, sliding=sliding) for name in ("key", "value"))
    usual = None if not (width := facts.maybe("embedding_length")) else width // n_heads
    if "attn_k" in block:
        key = _per_head(block, "attn_k", n_kv_heads, key)
    elif "attn_qkv" in block:
        key = key or usual
    else:
        key = key or _per_head(block, "attn_q", n_heads, None)
    if "attn_v" in block:
        value = _per_head(block, "attn_v", n_kv_heads, value)
    elif "attn_qkv" in block:
        value = value or usual
    if not key:
        raise facts.missing("attention.key_length")
    return key, value or key


def _per_head(block: Block, stem: str, n_heads: int, stated: int | None) -> int:
    rows = block.rows(stem)
    if rows % n_heads or (stated is not None and rows != n_heads * stated):
        wanted = f"{n_heads:,} heads" if stated is None else f"{n_heads:,} heads of {stated:,}"
        raise Undetermined(f"blk.{block.index}.{stem}.weight has {rows:,} rows, the metadata says {wanted}")
    return rows // n_heads


def _fused_queries(block: Block, n_kv_heads: int, head_dim: int, value_dim: int) -> int:
    return block.rows("attn_qkv") - n_kv_heads * (head_dim + value_dim)
