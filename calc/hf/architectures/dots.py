"""dots3: latent attention with a gate per head; layers with a window are wider, the others have an indexer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calc.hf.architecture import BIASED, Architecture
from calc.hf.feed_forward import feed_forwards
from calc.hf.latent import latent_mixer
from calc.hf.layers import stack
from calc.hf.reader import Reader, shown
from calc.model.layers import Latent, LayerSpec, Mixer

INDEXED, FULL, SLIDING = "indexed_attention", "full_attention", "sliding_attention"
SLIDING_SIZES = {
    "num_attention_heads": 64, "kv_lora_rank": 1024, "q_lora_rank": 1024, "qk_nope_head_dim": 192, "v_head_dim": 128,
    "qk_rope_head_dim": 64,
}  # fmt: skip
"""Sizes of layers with a window, if neither swa_ keys nor per_layer_config state them."""
FIELDS = {
    "num_attention_heads": "n_heads", "kv_lora_rank": "kv_lora_rank", "q_lora_rank": "q_lora_rank",
    "qk_nope_head_dim": "nope_dim", "v_head_dim": "value_dim", "qk_rope_head_dim": "rope_dim",
}  # fmt: skip


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    full = latent_mixer(reader, arch)
    types = _types(reader, n_layers)
    plain = replace(full, index_heads=0, index_dim=0, index_topk=0)
    mixers: list[tuple[Mixer, ...]] = []
    for i, kind in enumerate(types):
        latent = full if kind == INDEXED else plain if kind == FULL else _sliding(reader, plain, i)
        more = latent.rope_dim + hidden_size * latent.n_heads  # a norm of the rotary key, a gate per head
        mixers.append((replace(latent, extra_params=latent.extra_params + more),))
    return stack(reader, arch, hidden_size, mixers, feed_forwards(reader, arch, n_layers))


def _shared(reader: Reader, arch: Architecture) -> Architecture:
    """The shared experts have the size of a routed one, under two names."""
    each = reader.count("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size", default=1536)
    n_shared = reader.maybe("n_shared_experts", minimum=0)
    reader.put("shared_expert_intermediate_size", each * (1 if n_shared is None else n_shared))
    return arch


def _types(reader: Reader, n_layers: int) -> list[str]:
    """layer_types, or the second and every fourth layer after it (and the first) over all tokens."""
    use_dsa = reader.get("use_dsa")
    whole = FULL if use_dsa is False else INDEXED
    listed = reader.per_layer("layer_types", n_layers)
    if listed is None:
        slides = reader.flag("use_sliding_window", True)
        return [SLIDING if slides and i >= 2 and i % 4 != 1 else whole for i in range(n_layers)]
    if unknown := [kind for kind in listed if kind not in (INDEXED, FULL, SLIDING)]:
        raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows {INDEXED}, {FULL} and {SLIDING}")
    canonical = use_dsa is None and reader.has("per_layer_config")
    return [kind if canonical or kind == SLIDING else whole for kind in listed]


def _sliding(reader: Reader, full: Latent, layer: int) -> Latent:
    """The mixer of a layer with a window: sizes from per_layer_config, from swa_ keys, or from the class."""
    own = reader.section("per_layer_config")
    stated = None if own is None else own.section(f"{layer:02d}") or own.section(str(layer))
    if own is not None and stated is None:
        raise reader.fail(f"per_layer_config has no layer {layer}, which is a sliding one")
    reader.ignore("swa_num_key_value_heads", "swa_head_dim")
    sizes: dict[str, Any] = {name: getattr(full, name) for name in ("index_heads", "index_dim", "index_topk", "bias")}
    for key, field in FIELDS.items():
        found = stated.maybe(key) if stated is not None else reader.maybe(f"swa_{key}")
        if key == "qk_rope_head_dim" and stated is None and found is None and reader.has("swa_head_dim"):
            found = reader.count("swa_head_dim") - int(sizes["nope_dim"])
        sizes[field] = found or SLIDING_SIZES[key]
    if stated is not None:
        stated.ignore("num_key_value_heads", "head_dim")
    return Latent(window=reader.maybe("sliding_window", "sliding_window_size") or 512, **sizes)


ARCHITECTURES = (
    replace(
        BIASED,
        names=("dots3_note_text", "dots3_note"),
        unused=("k_rope_only_layernorm",),
        first_dense=True,
        adapt=_shared,
        layers=_layers,
    ),
)
