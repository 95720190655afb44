"""Models with layers of a make of their own: two attentions a layer (LongCat), heads of several numbers (MiMo,
Laguna), residual streams and gated norms around latent attention (Hunyuan 4, A.X K2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from calc.hf import kinds
from calc.hf.attention import attention_mixer, has_bias, qk_norm_params
from calc.hf.experts import feed_forwards
from calc.hf.families import Family
from calc.hf.kinds import Kind
from calc.hf.latent import latent_mixer
from calc.hf.reader import HIDDEN_SIZE, INTERMEDIATE_SIZE, Reader, shown
from calc.hf.state_space import Builder
from calc.model.layers import Attention, Dense, Experts, FeedForward, Latent, LayerSpec


def blocks_of(reader: Reader, family: Family, n_layers: int) -> list[tuple[FeedForward, ...]]:
    """The feed-forwards of gated models, dense or experts."""
    bias = has_bias(reader, family.mlp_bias)
    return feed_forwards(
        reader,
        family,
        hidden_size=reader.count(*HIDDEN_SIZE),
        n_layers=n_layers,
        dense_of=lambda size: Dense(intermediate_size=size, bias=bias),
        dense_size=lambda: reader.count(*INTERMEDIATE_SIZE),
    )


def longcat_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """LongCat: two latent attentions and two dense blocks a layer, experts beside them.

    Some experts are identities: the router has rows for them, and no weights are theirs.
    """
    latent = latent_mixer(reader, family)
    n_experts, idle = reader.count("n_routed_experts"), reader.maybe("zero_expert_num", minimum=0) or 0
    router = (n_experts + idle) * hidden_size + ((n_experts + idle) if reader.flag("router_bias") else 0)
    experts = Experts(
        n_experts=n_experts,
        top_k=min(n_experts, reader.count("moe_topk", "num_experts_per_tok")),
        expert_size=reader.count("expert_ffn_hidden_size", "moe_intermediate_size"),
        router_params=router,
    )
    if idle:
        reader.notes.append(f"{idle:,} of the experts are identities without weights: a token may go through fewer")
    dense = Dense(intermediate_size=reader.count("ffn_hidden_size", "intermediate_size"))
    layer = LayerSpec(
        hidden_size=hidden_size,
        mixers=(latent, latent),
        feed_forwards=(dense, dense, experts),
        norm_params=4 * hidden_size,
    )
    return [layer] * n_layers


def mimo_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """MiMo-V2: sliding layers have sinks and KV heads of their own number (twice as many where none is stated)."""
    pattern = reader.per_layer("hybrid_layer_pattern", n_layers)
    if reader.has("layer_types"):
        listed = reader.per_layer("layer_types", n_layers) or []
        if unknown := [kind for kind in listed if kind not in ("full_attention", "sliding_attention")]:
            raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows full and sliding_attention")
        slides = [kind == "sliding_attention" for kind in listed]
    elif pattern is not None:
        slides = [bool(value) for value in pattern]
    else:
        reader.assume("layer_types", "the first and every sixth layer full")
        slides = [bool(i and (i + 1) % 6) for i in range(n_layers)]
    if not reader.has("mlp_layer_types", "moe_layer_freq"):
        raise reader.fail("mlp_layer_types missing: it says which layers have experts")
    full = attention_mixer(reader, family, Kind(kinds.FULL))
    sliding = _mimo_sliding(reader, full)
    layers = []
    for is_sliding, block in zip(slides, blocks_of(reader, family, n_layers), strict=True):
        mixer = sliding if is_sliding else full
        layers.append(
            LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=block, norm_params=2 * hidden_size)
        )
    return layers


def _mimo_sliding(reader: Reader, full: Attention) -> Attention:
    window = reader.maybe("sliding_window_size")
    n_heads = reader.maybe("swa_num_attention_heads") or full.n_heads
    sinks = n_heads if reader.flag("add_swa_attention_sink_bias", True) else 0
    return replace(
        full,
        n_heads=n_heads,
        n_kv_heads=reader.maybe("swa_num_key_value_heads") or 2 * full.n_kv_heads,
        head_dim=reader.maybe("swa_head_dim") or full.head_dim,
        value_dim=reader.maybe("swa_v_head_dim") or full.value_dim,
        window=window + 1 if window else reader.count("sliding_window"),
        extra_params=sinks,
    )


def laguna_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Laguna: query heads by layer, and a gate for each head or each of its elements."""
    heads = reader.per_layer("num_attention_heads_per_layer", n_layers)
    gating = reader.get("gating")
    per_head = gating is None or gating is True or gating == "per-head"
    layers = []
    found = kinds.layer_kinds(reader, family, n_layers)
    for i, (kind, block) in enumerate(zip(found, blocks_of(reader, family, n_layers), strict=True)):
        mixer = attention_mixer(reader, family, kind)
        if heads is not None:
            mixer = replace(mixer, n_heads=reader.checked("num_attention_heads_per_layer", heads[i]))
        gate = mixer.n_heads * (1 if per_head else mixer.head_dim)
        mixer = replace(mixer, extra_params=hidden_size * gate)
        norms = 2 * hidden_size + qk_norm_params(reader, family, mixer)
        layers.append(LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=block, norm_params=norms))
    return layers


def gated_heads_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """LFM3: short convolutions and attention with a gate for each head, norms before and after."""
    from calc.hf.recurrent import recurrent_mixer

    blocks = blocks_of(reader, family, n_layers)
    norms = (4 if reader.flag("use_sandwich_norm", True) else 2) * hidden_size
    layers = []
    for kind, block in zip(kinds.layer_kinds(reader, family, n_layers), blocks, strict=True):
        if kind.name == kinds.CONV:
            mixer = recurrent_mixer(reader, kind.name, hidden_size)
            layers.append(LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=block, norm_params=norms))
            continue
        attention = attention_mixer(reader, family, kind)
        if reader.flag("use_attention_gate", True):
            attention = replace(attention, extra_params=hidden_size * attention.n_heads)
        own = norms + qk_norm_params(reader, family, attention)
        layers.append(LayerSpec(hidden_size=hidden_size, mixers=(attention,), feed_forwards=block, norm_params=own))
    return layers


def hunyuan4_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Hunyuan 4: sparse latent attention with sinks and an output gate, `hc_mult` residual streams mixed twice."""
    latent = latent_mixer(reader, family)
    gate = hidden_size * latent.n_heads * latent.value_dim
    latent = replace(latent, extra_params=latent.extra_params + gate + latent.n_heads)
    streams = reader.count("hc_mult")
    mixing = 2 * (2 * streams * streams * hidden_size + 2 * streams + 2)
    own = _indexers(reader, n_layers)
    layers = []
    for has_indexer, block in zip(own, blocks_of(reader, family, n_layers), strict=True):
        mixer = latent if has_indexer else replace(latent, index_heads=0, index_dim=0)
        norms = 2 * hidden_size + mixing
        layers.append(LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=block, norm_params=norms))
    return layers


def hunyuan4_other(reader: Reader) -> int:
    """What mixes the residual streams into one before the head."""
    streams = reader.count("hc_mult")
    return streams * streams * reader.count(*HIDDEN_SIZE) + streams + 1


def _indexers(reader: Reader, n_layers: int) -> list[bool]:
    """Which layers choose tokens themselves; the others take an earlier layer's choice."""
    listed = reader.per_layer("indexer_types", n_layers)
    if listed is None:
        return [True] * n_layers
    if unknown := [kind for kind in listed if kind not in ("full", "shared")]:
        raise reader.fail(f"indexer_types has {shown(unknown[0])}: kvscope knows full and shared")
    return [kind == "full" for kind in listed]


def indexed_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Sparse latent attention whose choice of tokens several layers share."""
    latent = latent_mixer(reader, family)
    layers = []
    for has_indexer, block in zip(_indexers(reader, n_layers), blocks_of(reader, family, n_layers), strict=True):
        mixer = latent if has_indexer else replace(latent, index_heads=0, index_dim=0)
        layers.append(
            LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=block, norm_params=2 * hidden_size)
        )
    return layers


def axk2_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """A.X K2: queries and an output gate from one projection of twice the rank, norms with a gate of low rank."""
    latent: Latent = latent_mixer(reader, family)
    rank, n_heads = latent.q_lora_rank, latent.n_heads
    if not rank:
        raise reader.fail("q_lora_rank missing: queries and gates of an axk2 model are projected from it")
    more = rank * n_heads * (latent.nope_dim + latent.rope_dim) + 2 * rank * n_heads * latent.value_dim
    latent = replace(latent, extra_params=latent.extra_params + more)
    gate = 2 * hidden_size * reader.count("gated_norm_rank")
    layers = []
    for block in blocks_of(reader, family, n_layers):
        gated = 2 if any(isinstance(part, Experts) for part in block) else 1
        norms = 2 * hidden_size + gated * gate
        layers.append(LayerSpec(hidden_size=hidden_size, mixers=(latent,), feed_forwards=block, norm_params=norms))
    return layers


def minimax_m3_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """MiniMax M3: full attention, in sparse layers with an indexer that picks blocks of tokens."""
    full = attention_mixer(reader, family, Kind(kinds.FULL))
    norms = 2 * hidden_size + qk_norm_params(reader, family, full)
    layers = []
    for sparse, block in zip(_m3_sparse(reader, n_layers), blocks_of(reader, family, n_layers), strict=True):
        mixer = _m3_indexed(reader, full, hidden_size) if sparse else full
        layers.append(LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=block, norm_params=norms))
    return layers


def _m3_sparse(reader: Reader, n_layers: int) -> list[bool]:
    own = reader.section("sparse_attention_config")
    if (listed := reader.per_layer("layer_types", n_layers)) is not None:
        if unknown := [kind for kind in listed if kind not in ("full_attention", "minimax_m3_sparse")]:
            raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows full_attention, minimax_m3_sparse")
        return [kind == "minimax_m3_sparse" for kind in listed]
    listed = own.per_layer("sparse_attention_freq", n_layers) if own is not None else None
    if listed is None:
        reader.assume("layer_types", "all full_attention")
    return [bool(value) for value in listed or [0] * n_layers]


def _m3_indexed(reader: Reader, full: Attention, hidden_size: int) -> Attention:
    own = reader.section("sparse_attention_config")
    legacy = own is not None and own.has("sparse_num_index_heads", "sparse_index_dim")
    source = own if own is not None and legacy else reader
    heads = source.count("sparse_num_index_heads" if legacy else "index_n_heads")
    head_dim = source.count("sparse_index_dim" if legacy else "index_head_dim")
    indexer = hidden_size * (heads + 1) * head_dim + 2 * head_dim
    return replace(full, index_dim=head_dim, extra_params=full.extra_params + indexer)


BUILDERS: Mapping[str, Builder] = {
    "longcat_flash": longcat_layers,
    "mimo_v2_flash": mimo_layers,
    "laguna": laguna_layers,
    "lfm3": gated_heads_layers,
    "hy_v4": hunyuan4_layers,
    "axk2": axk2_layers,
    "minimax_m3_vl_text": minimax_m3_layers,
}
