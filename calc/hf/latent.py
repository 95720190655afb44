"""Latent attention (MLA) from the fields of a config: kv_lora_rank indicates it."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import Architecture
from calc.hf.reader import HEAD_DIM, N_HEADS, N_KV_HEADS, Reader, shown
from calc.model.layers import Latent, Mixer

FIRST_SHARED = 2
"""index_skip_topk_offset of the classes that have it (GLM-5)."""


def is_latent(reader: Reader) -> bool:
    """Whether K and V come from a latent."""
    return reader.has("kv_lora_rank")


def latent_mixer(reader: Reader, arch: Architecture) -> Latent:
    """The mixer of a latent layer; a null q_lora_rank means that queries are projected directly."""
    if "q_lora_rank" not in reader.config:
        raise reader.fail("q_lora_rank missing: write null if queries have no latent")
    reader.ignore(*N_KV_HEADS, *HEAD_DIM, "qk_head_dim")  # one latent serves all heads
    return Latent(
        n_heads=reader.count(*N_HEADS),
        kv_lora_rank=reader.count("kv_lora_rank"),
        nope_dim=reader.count("qk_nope_head_dim"),
        rope_dim=reader.count("qk_rope_head_dim", minimum=0),
        value_dim=reader.count("v_head_dim"),
        q_lora_rank=reader.maybe("q_lora_rank", minimum=0) or 0,
        index_heads=reader.maybe("index_n_heads", minimum=0) or 0,
        index_dim=reader.maybe("index_head_dim", minimum=0) or 0,
        index_topk=reader.maybe("index_topk", minimum=0) or 0,
        bias=arch.qkv_bias is not False and reader.flag("attention_bias"),
    )


def shares_indexers(reader: Reader) -> bool:
    """Whether some latent layers may use the tokens selected by another layer's indexer."""
    return reader.has("indexer_types", "index_topk_pattern", "index_topk_freq")


def share_indexers(reader: Reader, mixers: list[tuple[Mixer, ...]]) -> list[tuple[Mixer, ...]]:
    """The mixers of each layer: a "shared" one uses the tokens selected by an earlier indexer.

    Raises SourceError for an unknown type.
    """
    listed = _indexer_types(reader, len(mixers))
    if unknown := [kind for kind in listed if kind not in ("full", "shared")]:
        raise reader.fail(f"indexer_types has {shown(unknown[0])}: kvscope knows full and shared")
    return [own if kind == "full" else _without_indexer(own) for kind, own in zip(listed, mixers, strict=True)]


def _indexer_types(reader: Reader, n_layers: int) -> list[str]:
    """indexer_types, or the letters of index_topk_pattern, or every index_topk_freq-th layer after an offset."""
    letters, frequency = reader.get("index_topk_pattern"), reader.maybe("index_topk_freq") or 1
    stated = reader.maybe("index_skip_topk_offset", minimum=0)
    if (listed := reader.per_layer("indexer_types", n_layers)) is not None:
        return listed
    if isinstance(letters, str):
        letters = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in letters]
    if letters is not None:
        if not isinstance(letters, list) or len(letters) < n_layers:
            raise reader.fail(f"index_topk_pattern must have a letter, F or S, for each of {n_layers} layers")
        return letters[:n_layers]
    offset = FIRST_SHARED if stated is None else stated
    return ["shared" if max(i - offset + 1, 0) % frequency else "full" for i in range(n_layers)]


def _without_indexer(mixers: tuple[Mixer, ...]) -> tuple[Mixer, ...]:
    return tuple(replace(mixer, index_heads=0, index_dim=0) if isinstance(mixer, Latent) else mixer for mixer in mixers)
