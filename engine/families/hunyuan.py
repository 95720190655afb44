"""Hunyuan V1 (dense): a Llama that normalises queries and keys of each head after they have turned."""

from collections.abc import Mapping
from typing import Any

from engine.families.common import common_config, head_dim_of
from engine.families.family import Family, GGUFForm
from engine.families.keys import Keys
from engine.families.tensors import renamed
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads"), "rms_norm_eps": 1e-5})
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        qk_norm_late=True,
        **_stretch(raw),
    )


def _stretch(raw: Keys) -> dict[str, Any]:
    """A base that ``alpha`` enlarges once and for all, which its configs call dynamic."""
    rope = raw.section("rope_parameters") or raw.section("rope_scaling")
    if rope is None or (rope.get("rope_type") or rope.get("type")) != "dynamic" or not rope.get("alpha"):
        return {}
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    theta = (rope if rope.get("rope_theta") else raw).positive("rope_theta", 1e4)
    return {"rope_theta": theta * rope.positive("alpha") ** (head_dim / (head_dim - 2))}


_PARTS = {"self_attn.query_layernorm": "self_attn.q_norm", "self_attn.key_layernorm": "self_attn.k_norm"}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {renamed(name, _PARTS, {}): stored for name, stored in tensors.items()}


FAMILIES = {"hunyuan_v1_dense": Family(config=_config, tensors=_tensors, gguf=GGUFForm(architecture="hunyuan-dense"))}
