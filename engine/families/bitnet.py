"""BitNet b1.58: a Llama with ternary weights and squared ReLU; a norm precedes each output projection."""

from typing import Any

from engine.families.common import common_config
from engine.families.family import Family, GGUFForm
from engine.families.keys import Keys
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": 5, "hidden_act": "relu2", "rms_norm_eps": 1e-5})
    raw = raw.with_defaults({"max_position_embeddings": 2048})
    bias = raw.flag("attention_bias", False)
    return common_config(raw, theta=5e5, qkv_bias=bias, o_bias=bias, sub_norms=True)


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """llama.cpp's BitNet architecture is the first BitNet, which uses SiLU."""
    return {"hidden_act": "silu"}


def _gguf_parts(config: ModelConfig) -> dict[str, str]:
    return {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"}


FAMILIES = {"bitnet": Family(config=_config, gguf=GGUFForm(architecture="bitnet", keys=_gguf_keys, parts=_gguf_parts))}
