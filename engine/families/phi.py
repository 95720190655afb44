"""Phi-1, 1.5 and 2: parallel layers, LayerNorm, biases everywhere, partly rotated heads."""

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config, head_dim_of, partial_rope
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import layer_norm_keys, turned_share
from engine.families.keys import Keys
from engine.families.tensors import renamed
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads"), "hidden_act": "gelu_new"})
    if raw.flag("qk_layernorm", False):
        raise UnsupportedArchitecture("config.json: qk_layernorm is true; it is not supported")
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    return common_config(
        raw,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_eps", 1e-5),
        block="parallel",
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
        **partial_rope(raw, head_dim, share=0.5),
    )


_PARTS = {"self_attn.dense": "self_attn.o_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
_ENDS = {"final_layernorm": "model.norm"}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {renamed(name, _PARTS, _ENDS): stored for name, stored in tensors.items()}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return layer_norm_keys(file) | turned_share(file)


FAMILIES = {"phi": Family(config=_config, tensors=_tensors, gguf=GGUFForm(architecture="phi2", keys=_gguf_keys))}
