"""Granite: a Llama whose embeddings, residuals, attention and logits are scaled."""

from typing import Any

from engine.families.common import common_config
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import head_width
from engine.families.keys import Keys
from engine.families.llama import halves_restored
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads")})
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=raw.flag("mlp_bias", False),
        embed_scale=raw.positive("embedding_multiplier", 1.0),
        residual_scale=raw.positive("residual_multiplier", 1.0),
        attention_scale=raw.positive("attention_multiplier", 1.0),
        logit_scale=1 / raw.positive("logits_scaling", 1.0),
    )


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    width = file.get("attention.key_length") or head_width(file) or 1
    return {
        "embedding_multiplier": file.get("embedding_scale"),
        "residual_multiplier": file.get("residual_scale"),
        "attention_multiplier": file.get("attention.scale") or width**-0.5,
        "logits_scaling": file.get("logit_scale"),
    }


FAMILIES = {
    "granite": Family(config=_config, gguf=GGUFForm(architecture="granite", keys=_gguf_keys, restore=halves_restored))
}
