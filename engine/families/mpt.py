"""MPT: ALiBi positions, LayerNorm and matrices without biases."""

from collections.abc import Mapping
from typing import Any

from engine.errors import CheckpointError, UnsupportedArchitecture
from engine.families.common import common_config
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import has_qkv_bias, layer_norm_keys
from engine.families.keys import Keys
from engine.families.tensors import qkv_sizes, renamed, rows_of
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    attention = raw.section("attn_config") or Keys({})
    _check(raw, attention)
    width, n_heads = raw.count("d_model", 2048), raw.count("n_heads", 16)
    names = {
        "hidden_size": width,
        "num_hidden_layers": raw.count("n_layers", 24),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "intermediate_size": raw.count("expansion_ratio", 4) * width,
        "hidden_act": "gelu",
        "max_position_embeddings": raw.count("max_seq_len", 2048),
    }
    scale = attention.optional_positive("softmax_scale")
    changes: dict[str, Any] = {"attention_scale": scale} if scale is not None else {}
    return common_config(
        Keys({"tie_word_embeddings": True, "vocab_size": 50_368, **raw.document, **names}),
        rope_theta=1e4,
        norm="layernorm",
        norm_bias=False,
        norm_eps=raw.positive("layer_norm_epsilon", 1e-5),
        positions="alibi",
        gated_mlp=False,
        **changes,
    )


def _check(raw: Keys, attention: Keys) -> None:
    usual: dict[str, Any] = {"clip_qkv": None, "qk_ln": False, "prefix_lm": False, "alibi": True, "alibi_bias_max": 8}
    usual |= {"attn_uses_sequence_id": False, "attn_type": "multihead_attention"}
    for keys, wanted in ((attention, usual), (raw, {"no_bias": True, "logit_scale": None})):
        for key, value in wanted.items():
            if keys.document.get(key, value) != value:
                raise UnsupportedArchitecture(f"{keys.where}: {key} is {keys.get(key)!r}; only {value} is supported")


_PARTS = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.Wqkv": "self_attn.qkv_proj",
    "attn.out_proj": "self_attn.o_proj",
    "ffn.up_proj": "mlp.up_proj",
    "ffn.down_proj": "mlp.down_proj",
}
_ENDS = {"wte": "model.embed_tokens", "norm_f": "model.norm"}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    for theirs, stored in tensors.items():
        name = renamed(theirs, _PARTS, _ENDS)
        if ".self_attn.qkv_proj." not in name:
            out[name] = stored
            continue
        start = 0
        for part, size in qkv_sizes(config).items():
            out[name.replace("qkv_proj", part)] = rows_of(stored, start, start + size)
            start += size
        if stored.shape[0] != start:
            raise CheckpointError(f"{theirs} has {stored.shape[0]} rows; expected {start}")
    return out


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    width, inner, bias = (
        file.get(key) for key in ("embedding_length", "feed_forward_length", "attention.max_alibi_bias")
    )
    heads, groups = file.get("attention.head_count"), file.get("attention.head_count_kv")
    return layer_norm_keys(file) | {
        "d_model": width,
        "n_heads": heads,
        "n_layers": file.get("block_count"),
        "max_seq_len": file.get("context_length"),
        "expansion_ratio": inner / width if isinstance(inner, int) and width else None,
        "no_bias": not has_qkv_bias(file),
        "attn_config": {
            "alibi": bool(bias),
            "alibi_bias_max": bias or 8,
            "clip_qkv": file.get("attention.clamp_kqv") or None,
            "qk_ln": "blk.0.attn_q_norm.weight" in file.tensors,
            "attn_type": "multihead_attention" if groups in (None, heads) else "grouped_query_attention",
        },
    }


FAMILIES = {"mpt": Family(config=_config, tensors=_tensors, gguf=GGUFForm(architecture="mpt", keys=_gguf_keys))}
