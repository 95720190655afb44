"""Models that mix linear attention with latent or full attention: Kimi-Linear, Bailing hybrid, Olmo hybrid, MiniMax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calc.hf import kinds
from calc.hf.attention import attention_mixer, has_bias, qk_norm_params
from calc.hf.experts import feed_forwards
from calc.hf.families import Family
from calc.hf.kinds import Kind
from calc.hf.latent import latent_mixer
from calc.hf.reader import HIDDEN_SIZE, INTERMEDIATE_SIZE, N_HEADS, Reader, shown
from calc.hf.state_space import Builder
from calc.model.layers import Attention, Dense, FeedForward, GatedDelta, KimiDelta, LayerSpec, Mixer, Stated

LINEAR, FULL = "linear_attention", "full_attention"


def _blocks(reader: Reader, family: Family, n_layers: int) -> list[tuple[FeedForward, ...]]:
    bias = has_bias(reader, family.mlp_bias)
    return feed_forwards(
        reader,
        family,
        hidden_size=reader.count(*HIDDEN_SIZE),
        n_layers=n_layers,
        dense_of=lambda size: Dense(intermediate_size=size, bias=bias),
        dense_size=lambda: reader.count(*INTERMEDIATE_SIZE),
    )


def _types(reader: Reader, n_layers: int) -> list[str] | None:
    """layer_types, of linear_attention and full_attention alone."""
    listed = reader.per_layer("layer_types", n_layers)
    if listed is not None and (unknown := [kind for kind in listed if kind not in (LINEAR, FULL)]):
        raise reader.fail(f"layer_types has {shown(unknown[0])}: a {reader.model_type} model has {LINEAR} and {FULL}")
    return listed


def _stack(
    hidden_size: int, types: list[str], blocks: list[tuple[FeedForward, ...]], of: Mapping[str, tuple[Mixer, int]]
) -> list[LayerSpec]:
    """One layer for each type and block; `of` has a type's mixer and its norms."""
    made: dict[Any, LayerSpec] = {}
    for kind, block in set(zip(types, blocks, strict=True)):
        mixer, norms = of[kind]
        made[kind, block] = LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=block, norm_params=norms)
    return [made[key] for key in zip(types, blocks, strict=True)]


def kimi_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Kimi-Linear: Kimi delta attention, and latent attention in layers that linear_attn_config or layer_types list."""
    own = reader.section("linear_attn_config")
    if own is not None:
        heads, head_dim, kernel = (own.count(key) for key in ("num_heads", "head_dim", "short_conv_kernel_size"))
        delta = KimiDelta(n_heads=heads, head_dim=head_dim, kernel=kernel, gate_rank=head_dim)
    else:
        head_dim = reader.count("linear_head_dim")
        delta = KimiDelta(
            n_heads=reader.count("linear_num_heads"),
            head_dim=head_dim,
            kernel=reader.count("linear_conv_kernel_dim"),
            gate_rank=head_dim,
        )
    types = _types(reader, n_layers) or _kimi_types(reader, own, n_layers)
    mixers: dict[str, tuple[Mixer, int]] = {LINEAR: (delta, 2 * hidden_size)}
    if FULL in types:
        mixers[FULL] = (latent_mixer(reader, family), 2 * hidden_size)
    return _stack(hidden_size, types, _blocks(reader, family, n_layers), mixers)


def _kimi_types(reader: Reader, own: Reader | None, n_layers: int) -> list[str]:
    """Layers are numbered from 1 in linear_attn_config."""
    if own is None or not own.has("full_attn_layers"):
        raise reader.fail("linear_attn_config missing: its full_attn_layers says which layers have latent attention")
    full = own.indices("full_attn_layers")
    return [FULL if i + 1 in full else LINEAR for i in range(n_layers)]


def bailing_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Bailing hybrid: Kimi delta attention with gates that are not of low rank, each group's last layer latent."""
    n_heads = reader.count(*N_HEADS)
    head_dim = reader.maybe("linear_head_dim") or reader.count("head_dim")
    kernel = reader.count("linear_conv_kernel_dim", "short_conv_kernel_size")
    delta = KimiDelta(n_heads=reader.maybe("linear_num_heads") or n_heads, head_dim=head_dim, kernel=kernel)
    types = _types(reader, n_layers)
    if types is None:
        group = reader.count("layer_group_size")
        types = [LINEAR if (i + 1) % group else FULL for i in range(n_layers)]
    mixers: dict[str, tuple[Mixer, int]] = {LINEAR: (delta, 2 * hidden_size)}
    if FULL in types:
        reader.config = {**reader.config, "q_lora_rank": None}  # the class projects queries directly
        latent = latent_mixer(reader, family)
        gated = replace(latent, extra_params=latent.extra_params + hidden_size * n_heads)
        mixers[FULL] = (gated, 2 * hidden_size)
    return _stack(hidden_size, types, _blocks(reader, family, n_layers), mixers)


def olmo_hybrid_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Olmo hybrid: gated delta, and every fourth layer full with norms over all heads."""
    n_heads = reader.count(*N_HEADS)
    key_heads = reader.maybe("linear_num_key_heads") or n_heads
    key_dim = reader.maybe("linear_key_head_dim") or 3 * hidden_size // (4 * key_heads)
    delta = GatedDelta(
        key_heads=key_heads,
        key_dim=key_dim,
        value_heads=reader.maybe("linear_num_value_heads") or n_heads,
        value_dim=reader.maybe("linear_value_head_dim") or 2 * key_dim,
        kernel=reader.count("linear_conv_kernel_dim", default=4),
    )
    types = _types(reader, n_layers) or [FULL if i % 4 == 3 else LINEAR for i in range(n_layers)]
    if FULL not in types:
        types = [*types[:-1], FULL]
    full = attention_mixer(reader, family, Kind(kinds.FULL))
    norms = 2 * hidden_size + qk_norm_params(reader, family, full)
    of: dict[str, tuple[Mixer, int]] = {LINEAR: (delta, 2 * hidden_size), FULL: (full, norms)}
    return _stack(hidden_size, types, _blocks(reader, family, n_layers), of)


def minimax_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """MiniMax-Text-01: lightning attention, and full attention where layer_types or attn_type_list says so."""
    types = _types(reader, n_layers)
    if types is None:
        listed = reader.per_layer("attn_type_list", n_layers)
        if listed is None and reader.model_type == "minimax":
            reader.assume("layer_types", "every second layer linear")
            listed = [1 - i % 2 for i in range(n_layers)]
        if listed is None or any(kind not in (0, 1) for kind in listed):
            raise reader.fail("attn_type_list must have a 0 (lightning) or 1 (full attention) for each layer")
        types = [FULL if kind else LINEAR for kind in listed]
    full: Attention = attention_mixer(reader, family, Kind(kinds.FULL))
    inner = full.n_heads * full.head_dim
    lightning = Stated(
        label="lightning attention",
        params=5 * hidden_size * inner + inner,
        state_elements=full.n_heads * full.head_dim * full.head_dim,
    )
    of: dict[str, tuple[Mixer, int]] = {LINEAR: (lightning, 2 * hidden_size), FULL: (full, 2 * hidden_size)}
    return _stack(hidden_size, types, _blocks(reader, family, n_layers), of)


BUILDERS: Mapping[str, Builder] = {
    "kimi_linear": kimi_layers,
    "bailing_hybrid": bailing_layers,
    "olmo_hybrid": olmo_hybrid_layers,
    "minimax": minimax_layers,
    "minimax_text_01": minimax_layers,
    "minimax_m1": minimax_layers,
}
