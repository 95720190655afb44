"""Decoders whose layers are like no others': Gemma 3n, Llama 3.2 Vision, OpenELM, DeciLM, and small additions.

Read off transformers 5.23 (``models/{gemma3n,mllama,bitnet,doge,hyperclovax}/modeling_*.py``) and held against its
classes in the tests; OpenELM, DeciLM and Phi-3-small from the code published with the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calc.hf import kinds
from calc.hf.attention import attention_mixer
from calc.hf.families import Family
from calc.hf.kinds import Kind
from calc.hf.reader import HIDDEN_SIZE, Reader, shown
from calc.model.layers import Attention, Dense, LayerSpec, Stated

OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "openelm": {
        "num_transformer_layers": "num_hidden_layers",
        "model_dim": "hidden_size",
        "num_query_heads": "num_attention_heads",
        "ffn_multipliers": "intermediate_size",
        "max_context_length": "max_position_embeddings",
        "share_input_output_layers": "tie_word_embeddings",
    },
    "phi3small": {"ff_intermediate_size": "intermediate_size"},
    "xglm": {"attention_heads": "num_attention_heads"},
}
"""Keys that only one model_type has, and what all others call them."""
LANGUAGE_MODELS = frozenset(("mm_vision_tower", "vision_config", "audio_config", "embd_layer", "vision_tower"))
"""Keys of a multimodal model whose text model's fields stand beside them."""


def usual_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config` with the usual keys beside those that only its model_type has."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return config
    if model_type == "llava":
        config = {**config, "model_type": _llava(config.get("architectures"))}
    names = OTHER_NAMES.get(model_type, {})
    return {**config, **{usual: config[own] for own, usual in names.items() if own in config}}


def _llava(architectures: object) -> str:
    """The first LLaVAs' configs name their language model by the architecture only."""
    for base in ("Mistral", "Qwen"):
        if base in str(architectures)[:200]:
            return f"llava_{base.lower()}"
    return "llava"


def adapt(reader: Reader, family: Family) -> tuple[Family, int]:
    """The family as this config has it, and parameters outside its layers. Raises SourceError."""
    hidden_size = reader.count(*HIDDEN_SIZE)
    match reader.model_type:
        case "gemma3n" | "gemma3n_text":
            return family, _gemma3n_outer(reader, hidden_size)
        case "mllama" | "mllama_text_model":
            reader.notes.append("K and V of the image's tokens, which the cross attention keeps, are not counted")
            return family, 8 * hidden_size  # the embedding has 8 rows more than the head
        case "bitnet":
            return replace(family, extra_params=hidden_size + reader.count("intermediate_size")), 0
        case "doge":
            return _doge(reader, family, hidden_size), 0
        case "hyperclovax":
            return replace(family, norms=4 if reader.flag("use_post_norm") else 2), 0
        case "gpt_neox_japanese":
            return family, hidden_size  # the last layer's bias of the projection
    if any(reader.has(key) for key in LANGUAGE_MODELS):
        reader.notes.append("the text model alone: encoders of images or sound are not counted")
    return family, 0


def layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec] | None:
    """All layers of one of these models; None for all others."""
    match reader.model_type:
        case "gemma3n" | "gemma3n_text":
            return _gemma3n(reader, family, n_layers, hidden_size)
        case "mllama" | "mllama_text_model":
            return _mllama(reader, family, n_layers, hidden_size)
        case "openelm":
            return _openelm(reader, n_layers, hidden_size)
    if reader.get("num_key_value_heads_per_layer") is not None:
        return _heads_per_layer(reader, family, n_layers, hidden_size)
    return None


def _doge(reader: Reader, family: Family, hidden_size: int) -> Family:
    """Scales of both residuals; a projection and a vector of each KV head that choose what is attended to."""
    if reader.flag("is_moe"):
        raise reader.fail("is_moe true: kvscope knows Doge with dense layers only")
    reader.config = {k: v for k, v in reader.config.items() if k not in ("num_experts", "num_experts_per_tok")}
    mixer = attention_mixer(reader, family, Kind(kinds.FULL))
    width, biased = mixer.n_kv_heads * mixer.head_dim, mixer.n_kv_heads * int(mixer.qkv_bias)
    return replace(family, extra_params=2 * hidden_size + mixer.n_kv_heads * (width + 1) + biased)


def _gemma3n_outer(reader: Reader, hidden_size: int) -> int:
    """Embeddings of each layer's own input, and projections of the further streams, in and out."""
    n_layers, each = reader.count("num_hidden_layers"), reader.count("hidden_size_per_layer_input")
    inputs = n_layers * each * (reader.count("vocab_size_per_layer_input") + hidden_size) + each
    streams = reader.count("altup_num_inputs") - 1
    return inputs + 2 * streams * hidden_size * hidden_size


def _gemma3n(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Gemma 3n: upper layers read a lower layer's cache; alternating updates, a low-rank path, an input a layer."""
    found = kinds.layer_kinds(reader, family, n_layers)
    first_shared = n_layers - (reader.maybe("num_kv_shared_layers", minimum=0) or 0)
    streams, each, rank = (
        reader.count(key) for key in ("altup_num_inputs", "hidden_size_per_layer_input", "laurel_rank")
    )
    updates = streams**2 + streams**3 + (streams + 2) * hidden_size
    extra = updates + 2 * rank * hidden_size + hidden_size + 2 * each * hidden_size + hidden_size
    out = []
    for i, (kind, size) in enumerate(zip(found, _inner_sizes(reader, n_layers), strict=True)):
        mixer = attention_mixer(reader, family, kind)
        if shared := i >= first_shared:
            mixer = replace(mixer, keys=False, values=False)
        norms = 4 * hidden_size + mixer.head_dim * (1 if shared else 2) + extra
        dense = Dense(intermediate_size=size)
        out.append(LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=(dense,), norm_params=norms))
    return out


def _inner_sizes(reader: Reader, n_layers: int) -> list[int]:
    """intermediate_size of each layer: a list, or one number for all."""
    if isinstance(reader.get("intermediate_size"), list):
        listed = reader.per_layer("intermediate_size", n_layers) or []
        return [reader.checked("intermediate_size", size) for size in listed]
    return [reader.count("intermediate_size")] * n_layers


def _mllama(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Llama 3.2 Vision: some layers attend to the image instead of the text, with gates, and cache none of it."""
    if not reader.has("cross_attention_layers"):
        raise reader.fail("cross_attention_layers missing: it says which layers attend to the image")
    crossed = reader.indices("cross_attention_layers")
    mixer = attention_mixer(reader, family, Kind(kinds.FULL))
    params = int(mixer.term(hidden_size).value) + 2 * mixer.head_dim + 2
    cross = Stated(label="attention to the image", params=params, state_elements=0)
    dense = Dense(intermediate_size=reader.count("intermediate_size"))
    plain, other = (
        LayerSpec(hidden_size=hidden_size, mixers=(part,), feed_forwards=(dense,), norm_params=2 * hidden_size)
        for part in (mixer, cross)
    )
    return [other if i in crossed else plain for i in range(n_layers)]


def _openelm(reader: Reader, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """OpenELM: heads and inner size grow with depth."""
    if not reader.flag("ffn_with_glu", True):
        raise reader.fail("ffn_with_glu false: kvscope knows OpenELM with gated layers")
    head_dim, divisor = reader.count("head_dim"), reader.count("ffn_dim_divisor")
    norms = 2 * hidden_size + (2 * head_dim if reader.flag("normalize_qk_projections") else 0)
    listed = [reader.per_layer(key, n_layers) for key in ("num_query_heads", "num_kv_heads", "ffn_multipliers")]
    if any(values is None for values in listed):
        raise reader.fail("num_query_heads, num_kv_heads and ffn_multipliers must be lists, one value a layer")
    out = []
    for heads, kv_heads, factor in zip(*(values or [] for values in listed), strict=True):
        mixer = Attention(
            n_heads=reader.checked("num_query_heads", heads),
            n_kv_heads=reader.checked("num_kv_heads", kv_heads),
            head_dim=head_dim,
            value_dim=head_dim,
        )
        dense = Dense(intermediate_size=_divisible(reader, factor, hidden_size=hidden_size, divisor=divisor))
        out.append(LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=(dense,), norm_params=norms))
    return out


def _divisible(reader: Reader, factor: object, *, hidden_size: int, divisor: int) -> int:
    """factor times hidden_size as a multiple of the divisor, never less than nine tenths of it."""
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1000:
        raise reader.fail(f"ffn_multipliers must hold numbers above 0, not {shown(factor)}")
    wanted = factor * hidden_size
    size = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return size + divisor if size < 0.9 * wanted else size


def _heads_per_layer(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """DeciLM: a Llama whose layers have different numbers of KV heads."""
    listed = reader.per_layer("num_key_value_heads_per_layer", n_layers) or []
    mixer = attention_mixer(reader, family, Kind(kinds.FULL))
    dense = Dense(intermediate_size=reader.count("intermediate_size"))
    each = [replace(mixer, n_kv_heads=reader.checked("num_key_value_heads_per_layer", n)) for n in listed]
    norms = 2 * hidden_size
    return [LayerSpec(hidden_size=hidden_size, mixers=(m,), feed_forwards=(dense,), norm_params=norms) for m in each]
