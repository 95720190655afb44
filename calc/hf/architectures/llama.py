"""Llama, and the many decoders that differ from it only in a bias, a norm or a projection."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import ATTENTION_BIAS, BIASED, MLP_BIAS, Architecture, Outer
from calc.hf.attention import full_attention
from calc.hf.feed_forward import dense_block
from calc.hf.layers import layers_by_fields, stack
from calc.hf.reader import HIDDEN_SIZE, Reader, shown
from calc.model.layers import Attention, Dense, LayerSpec, Mixer, Stated

_LLAMA = replace(BIASED, mlp_bias=MLP_BIAS)


def _llama_vision_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Llama 3.2 Vision: some layers attend to the image instead of the text, with gates, and cache no text."""
    if not reader.has("cross_attention_layers"):
        raise reader.fail("cross_attention_layers missing: it lists the layers that attend to the image")
    crossed = reader.indices("cross_attention_layers")
    mixer = full_attention(reader, arch)
    params = int(mixer.term(hidden_size).value) + 2 * mixer.head_dim + 2
    cross = Stated(label="attention to the image", params=params, state_elements=0)
    mixers: list[tuple[Mixer, ...]] = [(cross,) if i in crossed else (mixer,) for i in range(n_layers)]
    return stack(reader, arch, hidden_size, mixers, [(dense_block(reader, arch),)] * n_layers)


def _llama_vision_outer(reader: Reader) -> Outer:
    """The embedding has 8 rows more than the head."""
    reader.notes.append("K and V of the image tokens, which cross attention caches, are not counted")
    return Outer(8 * reader.count(*HIDDEN_SIZE))


def _doge(reader: Reader, arch: Architecture) -> Architecture:
    """Scales of both residuals; a projection and a vector per KV head that select what is attended to."""
    if reader.flag("is_moe"):
        raise reader.fail("kvscope does not support is_moe true: only Doge with dense layers")
    reader.drop("num_experts", "num_experts_per_tok")
    mixer = full_attention(reader, arch)
    width, biased = mixer.n_kv_heads * mixer.head_dim, mixer.n_kv_heads * int(mixer.qkv_bias)
    more = 2 * reader.count(*HIDDEN_SIZE) + mixer.n_kv_heads * (width + 1) + biased
    return replace(arch, extra_params=more)


def _bitnet(reader: Reader, arch: Architecture) -> Architecture:
    """A norm before the last projection of attention and of the feed-forward."""
    return replace(arch, extra_params=reader.count(*HIDDEN_SIZE) + reader.count("intermediate_size"))


def _hyperclovax(reader: Reader, arch: Architecture) -> Architecture:
    return replace(arch, norms=4 if reader.flag("use_post_norm") else 2)


def _openelm_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """OpenELM: heads and inner size grow with depth."""
    if not reader.flag("ffn_with_glu", True):
        raise reader.fail("kvscope does not support ffn_with_glu false: only OpenELM with gated layers")
    head_dim, divisor = reader.count("head_dim"), reader.count("ffn_dim_divisor")
    norms = 2 * hidden_size + (2 * head_dim if reader.flag("normalize_qk_projections") else 0)
    listed = [reader.per_layer(key, n_layers) for key in ("num_query_heads", "num_kv_heads", "ffn_multipliers")]
    if any(values is None for values in listed):
        raise reader.fail("num_query_heads, num_kv_heads and ffn_multipliers must be lists, one value per layer")
    layers = []
    for heads, kv_heads, factor in zip(*(values or [] for values in listed), strict=True):
        mixer = Attention(
            n_heads=reader.checked("num_query_heads", heads),
            n_kv_heads=reader.checked("num_kv_heads", kv_heads),
            head_dim=head_dim,
            value_dim=head_dim,
        )
        dense = Dense(intermediate_size=_divisible(reader, factor, hidden_size=hidden_size, divisor=divisor))
        layer = LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=(dense,), norm_params=norms)
        layers.append(layer)
    return layers


def _divisible(reader: Reader, factor: object, *, hidden_size: int, divisor: int) -> int:
    """factor times hidden_size as a multiple of the divisor, never less than nine tenths of it."""
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1000:
        raise reader.fail(f"ffn_multipliers must hold numbers above 0, not {shown(factor)}")
    wanted = factor * hidden_size
    size = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return size + divisor if size < 0.9 * wanted else size


def _laguna_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Laguna: the attention output has a gate per head, or per element of a head."""
    gating = reader.get("gating")
    per_head = gating is None or gating is True or gating == "per-head"
    layers = layers_by_fields(reader, arch, n_layers, hidden_size)
    return [
        replace(layer, mixers=tuple(_with_gate(mixer, hidden_size, per_head=per_head) for mixer in layer.mixers))
        for layer in layers
    ]


def _with_gate(mixer: Mixer, hidden_size: int, *, per_head: bool) -> Mixer:
    if not isinstance(mixer, Attention):
        return mixer
    return replace(mixer, extra_params=hidden_size * mixer.n_heads * (1 if per_head else mixer.head_dim))


ARCHITECTURES = (
    replace(_LLAMA, names=("llama", "llava", "llava_llama", "iquestcoder")),
    replace(BIASED, names=("llama4_text", "llama4"), unused=("use_qk_norm",), shared_is_dense=True),
    Architecture(names=("mllama_text_model", "mllama"), layers=_llama_vision_layers, outer=_llama_vision_outer),
    Architecture(names=("skywork",)),
    Architecture(names=("xverse",)),
    Architecture(names=("baichuan",)),
    Architecture(names=("yi", "Yi")),
    Architecture(names=("aquila",)),
    Architecture(names=("orion",), norm="layer"),
    replace(_LLAMA, names=("smollm3",), window="upper", tied=True),
    replace(_LLAMA, names=("arcee", "cosmos3_edge_text"), gated=False),
    replace(_LLAMA, names=("aria_text",)),
    replace(_LLAMA, names=("hyperclovax",), adapt=_hyperclovax),
    replace(_LLAMA, names=("doge",), unused=("keep_window_size",), qk_norm="head", window="all", adapt=_doge),
    replace(BIASED, names=("bitnet",), adapt=_bitnet),
    replace(BIASED, names=("apertus",), gated=False, qk_norm="head", extra_params=2),
    replace(BIASED, names=("diffllama",), extra_head_dims=4),
    replace(BIASED, names=("nanochat",), norm="none", gated=False),
    replace(BIASED, names=("mellum",), qk_norm="head", default_window=1024),
    replace(
        BIASED,
        names=("flint",),
        sinks=True,
        qk_norm="head",
        default_window=513,
        required=("layer_types", "mlp_only_layers"),
    ),
    replace(
        BIASED,
        names=("kolibri1",),
        norms=4,
        qk_norm="head",
        layer_types=(*("sliding_attention",) * 4, "full_attention"),
    ),
    replace(BIASED, names=("laguna",), qk_norm="head", router_bias=True, first_dense=True, layers=_laguna_layers),
    replace(
        BIASED,
        names=("afmoe",),
        norms=4,
        qk_norm="head",
        unused=("global_attn_every_n_layers",),
        separate_gate=True,
        router_bias=True,
        window="every:4",
        default_window=1024,
    ),
    Architecture(names=("helium",), qkv_bias=ATTENTION_BIAS, mlp_bias=MLP_BIAS),
    Architecture(
        names=("seed_oss",),
        qkv_bias=("attention_bias", True),
        o_bias=("attention_out_bias", False),
        mlp_bias=MLP_BIAS,
    ),
    Architecture(
        names=("openelm",),
        tied=True,
        layers=_openelm_layers,
        rename={
            "num_transformer_layers": "num_hidden_layers",
            "model_dim": "hidden_size",
            "num_query_heads": "num_attention_heads",
            "ffn_multipliers": "intermediate_size",
            "max_context_length": "max_position_embeddings",
            "share_input_output_layers": "tie_word_embeddings",
        },
    ),
)
