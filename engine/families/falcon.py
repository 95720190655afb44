"""Falcon: parallel layers with one or two norms; queries, keys and values in one matrix."""

from typing import Any

from engine.families.common import common_config
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import has_qkv_bias, layer_norm_keys
from engine.families.keys import Keys
from engine.families.tensors import renamed_with_groups
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile


def _config(raw: Keys) -> ModelConfig:
    old = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_kv_heads": "n_head_kv"}
    raw = Keys({**{new: raw.get(name) for new, name in old.items() if raw.get(name) is not None}, **raw.document})
    heads, width = raw.count("num_attention_heads"), raw.count("hidden_size", raw.get("n_embed"))
    grouped = raw.flag("new_decoder_architecture", False)
    n_kv = raw.count("num_kv_heads", heads) if grouped or not raw.flag("multi_query", True) else 1
    bias, parallel = raw.flag("bias", False), raw.flag("parallel_attn", True) or grouped
    norms = raw.optional_count("num_ln_in_parallel_attn") or (2 if grouped else 1)
    # Scores are scaled after ALiBi has been added.
    positions = {"positions": "alibi", "alibi_scale": (width // heads) ** -0.5} if raw.flag("alibi", False) else {}
    names = {
        "hidden_size": width,
        "num_key_value_heads": n_kv,
        "intermediate_size": raw.get("ffn_hidden_size") or 4 * width,
        "hidden_act": raw.get("activation") or "gelu",
    }
    defaults = {"tie_word_embeddings": True, "max_position_embeddings": 2048}
    return common_config(
        Keys({**defaults, **raw.document, **names}),
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_epsilon", 1e-5),
        block="parallel" if parallel else "pre",
        parallel_norms=norms if grouped else 1,
        gated_mlp=False,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        **positions,
    )


_PARTS = {
    "self_attention.query_key_value": "self_attn.qkv_proj",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "ln_attn": "input_layernorm",
    "ln_mlp": "post_attention_layernorm",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}
_ENDS = {"word_embeddings": "model.embed_tokens", "ln_f": "model.norm"}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """The stated inner size is always 4 times the width, even if the real one differs."""
    up, two = file.tensors.get("blk.0.ffn_up.weight"), "blk.0.attn_norm_2.weight" in file.tensors
    return {
        **layer_norm_keys(file),
        "num_kv_heads": file.get("attention.head_count_kv"),
        "new_decoder_architecture": True,  # this switch enables n_kv_heads and two norms
        "num_ln_in_parallel_attn": 2 if two else 1,
        "ffn_hidden_size": up.shape[0] if up is not None else None,
        "bias": has_qkv_bias(file),
    }


def _parts_of(config: ModelConfig) -> dict[str, str]:
    """Tensor names: with two norms, the first one belongs to the MLP."""
    two = config.parallel_norms == 2
    return {"attn_norm": "post_attention_layernorm", "attn_norm_2": "input_layernorm"} if two else {}


FAMILIES = {
    "falcon": Family(
        config=_config,
        tensors=renamed_with_groups(_PARTS, _ENDS),
        gguf=GGUFForm(architecture="falcon", keys=_gguf_keys, parts=_parts_of),
    )
}
