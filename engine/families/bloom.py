"""BLOOM: ALiBi positions, normalized embeddings, q, k and v fused head by head in one matrix."""

from typing import Any

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import layer_norm_keys
from engine.families.keys import Keys
from engine.families.tensors import renamed_with_groups
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile


def _config(raw: Keys) -> ModelConfig:
    if raw.flag("apply_residual_connection_post_layernorm", False):
        raise UnsupportedArchitecture("config.json: apply_residual_connection_post_layernorm is true; not supported")
    width = raw.count("hidden_size", raw.get("n_embed") or raw.get("n_embd") or 64)
    n_heads = raw.count("n_head", raw.get("num_attention_heads") or 8)
    names = {
        "hidden_size": width,
        "num_hidden_layers": raw.count("n_layer", raw.get("num_hidden_layers") or 2),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "intermediate_size": 4 * width,
        "hidden_act": "gelu_new",
        "max_position_embeddings": raw.count("seq_length", 2048),
    }
    return common_config(
        Keys({"tie_word_embeddings": True, **raw.document, **names}),
        rope_theta=1e4,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_epsilon", 1e-5),
        positions="alibi",
        embed_norm=True,
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )


_PARTS = {
    "self_attention.query_key_value": "self_attn.qkv_proj",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}
_ENDS = {
    "word_embeddings": "model.embed_tokens",
    "word_embeddings_layernorm": "model.embed_norm",
    "ln_f": "model.norm",
}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return layer_norm_keys(file) | {
        "n_head": file.get("attention.head_count"),
        "seq_length": file.get("context_length"),
    }


def _gguf_parts(config: ModelConfig) -> dict[str, str]:
    return {"token_embd_norm": "model.embed_norm"}


FAMILIES = {
    "bloom": Family(
        config=_config,
        tensors=renamed_with_groups(_PARTS, _ENDS),
        gguf=GGUFForm(architecture="bloom", keys=_gguf_keys, parts=_gguf_parts),
    )
}
