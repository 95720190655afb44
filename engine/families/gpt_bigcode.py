"""GPT-BigCode (StarCoder, SantaCoder): a GPT-2 whose heads may share one key and value; matrices outputs first."""

from collections.abc import Mapping
from typing import Any

from engine.families.common import common_config
from engine.families.family import Family
from engine.families.keys import Keys
from engine.families.tensors import renamed, split_groups
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50_257})
    width, n_heads = raw.count("n_embd"), raw.count("n_head")
    names = {
        "hidden_size": width,
        "num_hidden_layers": raw.get("n_layer"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": 1 if raw.flag("multi_query", True) else n_heads,
        "max_position_embeddings": raw.get("n_positions"),
        "intermediate_size": raw.get("n_inner") or 4 * width,
        "hidden_act": raw.get("activation_function") or "gelu_pytorch_tanh",
    }
    scale: dict[str, Any] = {} if raw.flag("scale_attn_weights", True) else {"attention_scale": 1.0}
    return common_config(
        Keys({"tie_word_embeddings": True, **raw.document, **names}),
        rope_theta=1e4,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_epsilon", 1e-5),
        positions="learned",
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        **scale,
    )


_PARTS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_attn": "self_attn.qkv_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_ENDS = {"wte": "model.embed_tokens", "wpe": "model.embed_positions", "ln_f": "model.norm"}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """One KV head: all queries first; several: the query, key and value of each head in turn."""
    out: dict[str, Stored] = {}
    for theirs, stored in tensors.items():
        name = renamed(theirs, _PARTS, _ENDS)
        if ".self_attn.qkv_proj." in name:
            out |= split_groups(name, stored, config)
        else:
            out[name] = stored
    return out


FAMILIES = {"gpt_bigcode": Family(config=_config, tensors=_tensors)}
