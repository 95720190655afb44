"""OPT: learned positions of which the first two rows are not used, LayerNorm, ReLU, biases everywhere."""

from collections.abc import Mapping

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config
from engine.families.family import Family
from engine.families.keys import Keys
from engine.families.tensors import renamed, rows_of
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored

_OFFSET = 2  # unused rows before the first position


def _config(raw: Keys) -> ModelConfig:
    usual = {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}
    for key, wanted in usual.items():
        if raw.flag(key, wanted) is not wanted:
            raise UnsupportedArchitecture(f"config.json: {key} is {raw.get(key)}; only {wanted} is supported")
    width = raw.count("hidden_size", 768)
    if raw.count("word_embed_proj_dim", width) != width:
        raise UnsupportedArchitecture(
            "config.json: embeddings of another width (word_embed_proj_dim) are not supported"
        )
    bias = raw.flag("enable_bias", True)
    names = {
        "hidden_size": width,
        "num_key_value_heads": raw.get("num_attention_heads"),
        "intermediate_size": raw.count("ffn_dim", 3072),
        "hidden_act": raw.get("activation_function") or "relu",
    }
    defaults = {"tie_word_embeddings": True, "max_position_embeddings": 2048}
    return common_config(
        Keys({**defaults, **raw.document, **names}),
        rope_theta=1e4,
        norm="layernorm",
        norm_eps=1e-5,
        positions="learned",
        gated_mlp=False,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
    )


_PARTS = {
    "self_attn_layer_norm": "input_layernorm",
    "final_layer_norm": "post_attention_layernorm",
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.k_proj",
    "self_attn.v_proj": "self_attn.v_proj",
    "self_attn.out_proj": "self_attn.o_proj",
    "fc1": "mlp.up_proj",
    "fc2": "mlp.down_proj",
}
_ENDS = {
    "embed_tokens": "model.embed_tokens",
    "embed_positions": "model.embed_positions",
    "final_layer_norm": "model.norm",
}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    for theirs, stored in tensors.items():
        name = renamed(theirs.removeprefix("model.").removeprefix("decoder."), _PARTS, _ENDS)
        if name == "model.embed_positions.weight":
            stored = rows_of(stored, _OFFSET, stored.shape[0])
        out[name] = stored
    return out


FAMILIES = {"opt": Family(config=_config, tensors=_tensors)}
