"""Gemma: norm weights stored minus 1, scaled embeddings; from Gemma 2 on, windows and norms before and after."""

import math
import re
from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedArchitecture
from engine.families.common import (
    FULL,
    SLIDING,
    activation_of,
    common_config,
    layer_types,
    n_layers_of,
    rope_fields,
    window_fields,
)
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import both_sides, head_width, layer_kinds
from engine.families.keys import Keys
from engine.families.rope import RopeKeys, read_rope, read_scaling
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored

_GEMMA2 = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
_GEMMA3 = _GEMMA2 | {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "num_attention_heads": 8,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
}


def _gemma_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True})
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedArchitecture("config.json: use_bidirectional_attention is not supported")
    # The releases write "gelu" but use the tanh approximation.
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or "gelu"
    tanh = {"hidden_act": "gelu_pytorch_tanh" if activation == "gelu" else activation}
    bias = raw.flag("attention_bias", False)
    return common_config(
        Keys({**raw.document, **tanh}),
        norm_offset=1.0,
        qkv_bias=bias,
        o_bias=bias,
        embed_scale=math.sqrt(raw.count("hidden_size")),
    )


def _gemma2_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(_GEMMA2)
    return common_config(raw, **_gemma_fields(raw, pattern=2))


def _gemma3_config(raw: Keys) -> ModelConfig:
    inner = raw.section("text_config")  # multimodal configs have the decoder's keys in a section
    if inner is not None:
        outer = {key: raw.document[key] for key in ("eos_token_id", "bos_token_id") if raw.get(key) is not None}
        raw = Keys({**outer, **inner.document}, where=inner.where)
    raw = raw.with_defaults(_GEMMA3)
    head_dim = raw.count("head_dim")
    far, near = _gemma3_rope(raw, head_dim)
    return common_config(
        raw,
        qk_norm=True,
        **_gemma_fields(raw, pattern=raw.count("sliding_window_pattern", 6)),
        **rope_fields(far),
        local_rope_theta=near,
    )


def _gemma3_rope(raw: Keys, head_dim: int) -> tuple[RopeKeys, float]:
    """The global layers' base and scaling, and the local layers' base, which is never scaled."""
    both = raw.section("rope_parameters")
    far, near = (both.section(FULL), both.section(SLIDING)) if both else (None, None)
    if far is None:
        return read_rope(raw, theta=1e6, rotary_dim=head_dim), raw.positive("rope_local_base_freq", 1e4)
    if near is not None and (near.get("rope_type") or "default") != "default":
        raise UnsupportedArchitecture(f"{near.where}: type {near.get('rope_type')!r} is not supported in local layers")
    theta = far.positive("rope_theta", 1e6)
    near_theta = near.positive("rope_theta", 1e4) if near is not None else 1e4
    return read_scaling(raw, far, theta, rotary_dim=head_dim, aliases={}), near_theta


def _gemma_fields(raw: Keys, *, pattern: int) -> dict[str, Any]:
    """The fields specific to Gemma 2 and 3; every ``pattern``-th layer has full attention, the others a window."""
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedArchitecture("config.json: use_bidirectional_attention is not supported")
    bias = raw.flag("attention_bias", False)
    kinds = layer_types(raw)
    if kinds is None:
        kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(n_layers_of(raw))]
    return {
        "norm_offset": 1.0,
        "block": "sandwich",
        "activation": activation_of(raw, "hidden_activation"),
        "qkv_bias": bias,
        "o_bias": bias,
        "embed_scale": math.sqrt(raw.count("hidden_size")),
        "attention_scale": raw.positive("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": raw.optional_positive("attn_logit_softcapping"),
        "logit_softcap": raw.optional_positive("final_logit_softcapping"),
        **window_fields(raw, kinds),
    }


_IMAGE_PARTS = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
_TEXT_PART = re.compile(r"(model\.language_model\.(?:model\.)?|language_model\.model\.)")


def _text_tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """The tensors of a multimodal model's decoder; those of the vision part are left out."""
    out: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if _IMAGE_PARTS.match(name):
            continue
        out[_TEXT_PART.sub("model.", name, count=1).removeprefix("language_model.")] = tensor
    if config.tied:
        out.pop("lm_head.weight", None)
    return out


_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale by hidden size / heads


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    largest = file.get("block_count") == _LARGEST[file.architecture]
    second = file.architecture == "gemma2"
    window = file.get("attention.sliding_window") or (4096 if second else None)  # llama.cpp's assumption
    return {
        "query_pre_attn_scalar": head_width(file) if largest else file.get("attention.key_length") or head_width(file),
        "sliding_window": window,
        "layer_types": layer_kinds(file, every=2 if second else 6, window=window),
        "rope_local_base_freq": file.get("rope.freq_base_swa"),
        "attn_logit_softcapping": file.get("attn_logit_softcapping") if second else None,
        "final_logit_softcapping": file.get("final_logit_softcapping"),
    }


def _gemma1_keys(file: GGUFFile) -> dict[str, Any]:
    return {"hidden_act": "gelu_pytorch_tanh"}


def _gguf(architecture: str) -> GGUFForm:
    return GGUFForm(
        architecture=architecture, keys=_gguf_keys, parts=both_sides, off=("sliding_window",), adds_norm_offset=True
    )


FAMILIES = {
    "gemma": Family(
        config=_gemma_config, gguf=GGUFForm(architecture="gemma", keys=_gemma1_keys, adds_norm_offset=True)
    ),
    "gemma2": Family(config=_gemma2_config, gguf=_gguf("gemma2")),
    "gemma3_text": Family(config=_gemma3_config, gguf=_gguf("gemma3")),
    "gemma3": Family(config=_gemma3_config, tensors=_text_tensors),
}
