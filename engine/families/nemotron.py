"""Nemotron (Minitron): LayerNorm weights stored minus 1, squared ReLU, half of each head is rotated."""

from typing import Any

from engine.families.common import common_config, head_dim_of, partial_rope
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import turned_share
from engine.families.keys import Keys
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile


def _config(raw: Keys) -> ModelConfig:
    heads = {"num_key_value_heads": raw.get("num_attention_heads")}
    raw = raw.with_defaults(heads | {"hidden_act": "relu2", "max_position_embeddings": 4096})
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    share = raw.get("rope_percent") or raw.get("rope_percentage") or 0.5
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        head_dim=head_dim,
        norm="layernorm",
        norm_eps=raw.positive("norm_eps", 1e-5),
        norm_offset=1.0,
        gated_mlp=False,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=raw.flag("mlp_bias", False),
        **partial_rope(raw, head_dim, share=share),
    )


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return {"norm_eps": file.get("attention.layer_norm_epsilon"), **turned_share(file)}


FAMILIES = {
    "nemotron": Family(config=_config, gguf=GGUFForm(architecture="nemotron", keys=_gguf_keys, adds_norm_offset=True))
}
