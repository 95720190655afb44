"""GLM-4: half of each head turns, in pairs; gate and up in one matrix; GLM-4-0414 normalises results too."""

from collections.abc import Mapping
from typing import Any

from engine.families.common import common_config, partial_rope
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import both_sides, turned_share
from engine.families.keys import Keys
from engine.families.tensors import in_halves, pairs_restored, renamed, split_gate_up
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored


def _glm_config(raw: Keys, **changes: Any) -> ModelConfig:
    raw = raw.with_defaults({"head_dim": 128, "num_key_value_heads": 2, "rms_norm_eps": 1.5625e-7})
    bias = raw.flag("attention_bias", True)
    return common_config(raw, qkv_bias=bias, **partial_rope(raw, raw.count("head_dim"), share=0.5), **changes)


def _glm4_config(raw: Keys) -> ModelConfig:
    return _glm_config(raw, block="sandwich")


_GLM4_PARTS = {
    "post_self_attn_layernorm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "post_mlp_layernorm": "post_feedforward_layernorm",
}


def _glm_tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    for name, stored in tensors.items():
        out |= split_gate_up(name, in_halves(name, stored, config), config)
    return out


def _glm4_tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return _glm_tensors({renamed(name, _GLM4_PARTS, {}): stored for name, stored in tensors.items()}, config)


FAMILIES = {
    "glm": Family(config=_glm_config, tensors=_glm_tensors),
    "glm4": Family(
        config=_glm4_config,
        tensors=_glm4_tensors,
        gguf=GGUFForm(
            architecture="glm4", keys=turned_share, parts=both_sides, restore=pairs_restored, fused_gate=True
        ),
    ),
}
