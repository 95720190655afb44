"""Granite: a Llama whose embeddings, residuals, attention and logits are scaled."""

from engine.families.common import common_config
from engine.families.family import Family
from engine.families.keys import Keys
from engine.model.config import ModelConfig


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


FAMILIES = {"granite": Family(config=_config)}
