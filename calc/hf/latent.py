"""Latent attention (MLA), from the fields of a config: kv_lora_rank says that a model has it."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import Architecture
from calc.hf.reader import HEAD_DIM, N_HEADS, N_KV_HEADS, Reader, shown
from calc.model.layers import Latent, Mixer


def is_latent(reader: Reader) -> bool:
    """Whether K and V come from a latent."""
    return reader.has("kv_lora_rank")


def latent_mixer(reader: Reader, arch: Architecture) -> Latent:
    """The mixer of a latent layer; a null q_lora_rank means that queries are projected directly."""
    if "q_lora_rank" not in reader.config:
        raise reader.fail("q_lora_rank missing: write null where queries have no latent")
    reader.ignore(*N_KV_HEADS, *HEAD_DIM, "qk_head_dim")  # one latent serves all heads
    return Latent(
        n_heads=reader.count(*N_HEADS),
        kv_lora_rank=reader.count("kv_lora_rank"),
        nope_dim=reader.count("qk_nope_head_dim"),
        rope_dim=reader.count("qk_rope_head_dim"),
        value_dim=reader.count("v_head_dim"),
        q_lora_rank=reader.maybe("q_lora_rank", minimum=0) or 0,
        index_heads=reader.maybe("index_n_heads", minimum=0) or 0,
        index_dim=reader.maybe("index_head_dim", minimum=0) or 0,
        index_topk=reader.maybe("index_topk", minimum=0) or 0,
        bias=arch.qkv_bias is not False and reader.flag("attention_bias"),
    )


def share_indexers(reader: Reader, mixers: list[tuple[Mixer, ...]]) -> list[tuple[Mixer, ...]]:
    """The mixers of each layer as indexer_types has them: a "shared" layer takes its tokens from an earlier indexer.

    Raises SourceError for a type that is not known.
    """
    listed = reader.per_layer("indexer_types", len(mixers)) or ["full"] * len(mixers)
    if unknown := [kind for kind in listed if kind not in ("full", "shared")]:
        raise reader.fail(f"indexer_types has {shown(unknown[0])}: kvscope knows full and shared")
    return [own if kind == "full" else _without_indexer(own) for kind, own in zip(listed, mixers, strict=True)]


def _without_indexer(mixers: tuple[Mixer, ...]) -> tuple[Mixer, ...]:
    return tuple(replace(mixer, index_heads=0, index_dim=0) if isinstance(mixer, Latent) else mixer for mixer in mixers)
