"""Attention over latents and over compressed rows, from the matrices of a layer and the metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calc.errors import SpecError
from calc.model.latent import ExpandedLatent, Latent
from calc.sources.gguf.attention import HEADS, PICKED
from calc.sources.gguf.facts import Block, Facts, Undetermined
from calc.sources.gguf.windows import WINDOW

if TYPE_CHECKING:
    from calc.model.layers import Mixer


def is_latent(block: Block) -> bool:
    """Whether K and V come from a latent."""
    return "attn_kv_a_mqa" in block


def latent(facts: Facts, block: Block, *, window: int | None) -> Latent:
    """The latent attention of a layer. Raises Undetermined.

    An indexer that pools the keys of several tokens picks as many pools as hold its top_k tokens (index_topk //
    index_kpool in transformers' glm5_next).
    """
    if window is not None:
        raise Undetermined("windows over a latent are not known to kvscope")
    n_heads, rank = facts.at(HEADS, block.index), _rank(facts, block)
    if not n_heads:
        raise facts.missing(HEADS)
    rope = block.rows("attn_kv_a_mqa") - rank
    low_rank = "attn_q_a" in block
    query = block.rows("attn_q_b" if low_rank else "attn_q")
    # In files from before llama.cpp had latent caches K and V are one matrix: it keeps both of every head.
    latent_cache = facts.maybe("attention.key_length_mla") or "attn_k_b" in block
    made = Latent if latent_cache else ExpandedLatent
    indexed = "indexer.attn_k" in block and facts.at("attention.indexer.types", block.index) != 0
    try:
        return made(
            n_heads=n_heads,
            kv_lora_rank=rank,
            nope_dim=query // n_heads - rope,
            rope_dim=rope,
            value_dim=block.columns("attn_output") // n_heads,
            q_lora_rank=block.rows("attn_q_a") if low_rank else 0,
            index_heads=block.rows("indexer.proj") if indexed else 0,
            index_dim=block.rows("indexer.attn_k") if indexed else 0,
            index_topk=facts.maybe(PICKED) or 0,
        )
    except SpecError as error:
        raise Undetermined(f"layer {block.index}: {error}") from None


def _rank(facts: Facts, block: Block) -> int:
    if "attn_kv_a_norm" in block:
        return block.columns("attn_kv_a_norm")
    return facts.count("attention.kv_lora_rank")


def is_compressed(block: Block) -> bool:
    """Whether a layer attends to rows that are key and value at once (DeepSeek-V4)."""
    return "attn_kv" in block and "attn_output_a" in block


def compressed(facts: Facts, block: Block) -> tuple[Mixer, ...]:
    """The window of a layer, and what makes one row of several tokens. Raises Undetermined."""
    from calc.model.compressed import Compressor, WindowRow

    head_dim, q_lora_rank = block.rows("attn_kv"), block.rows("attn_q_a")
    try:
        rows = WindowRow(
            n_heads=block.rows("attn_q_b") // head_dim,
            head_dim=head_dim,
            rope_dim=facts.maybe("rope.dimension_count") or head_dim // 8,
            q_lora_rank=q_lora_rank,
            o_groups=facts.count("attention.output_group_count"),
            o_lora_rank=facts.count("attention.output_lora_rank"),
            window=facts.count(WINDOW),
        )
        if "attn_compressor_kv" not in block:
            return (rows,)
        heads = block.rows("indexer.proj") if "indexer_compressor_kv" in block else 0
        compressor = Compressor(
            head_dim=head_dim,
            ratio=block.rows("attn_compressor_ape"),
            overlap=block.rows("attn_compressor_kv") == 2 * head_dim,
            q_lora_rank=q_lora_rank,
            read_heads=rows.n_heads,
            index_heads=heads,
            index_dim=block.rows("indexer.attn_q_b") // heads if heads else 0,
            index_topk=(facts.maybe(PICKED) or 0) if heads else 0,
        )
    except SpecError as error:
        raise Undetermined(f"layer {block.index}: {error}") from None
    return rows, compressor
