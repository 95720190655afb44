"""GPT-NeoX and Pythia: parallel layers with two norms, partly rotated heads, q, k and v fused head by head."""

from typing import Any

from engine.families.common import common_config, head_dim_of, partial_rope
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import has_qkv_bias, layer_norm_keys, turned_share
from engine.families.keys import Keys
from engine.families.tensors import renamed_with_groups
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"hidden_act": "gelu", "rope_theta": raw.get("rotary_emb_base") or 1e4})
    raw = Keys({**raw.document, "num_key_value_heads": raw.get("num_attention_heads")})
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    bias = raw.flag("attention_bias", True)
    return common_config(
        raw,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_eps", 1e-5),
        block="parallel" if raw.flag("use_parallel_residual", True) else "pre",
        parallel_norms=2,
        gated_mlp=False,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=True,
        **partial_rope(raw, head_dim, share=raw.positive("rotary_pct", 0.25)),
    )


_PARTS = {
    "attention.query_key_value": "self_attn.qkv_proj",
    "attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}
_ENDS = {"embed_in": "model.embed_tokens", "final_layer_norm": "model.norm", "embed_out": "lm_head"}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return {
        **layer_norm_keys(file),
        **turned_share(file),
        "use_parallel_residual": file.get("use_parallel_residual"),
        "attention_bias": has_qkv_bias(file),
    }


FAMILIES = {
    "gpt_neox": Family(
        config=_config,
        tensors=renamed_with_groups(_PARTS, _ENDS),
        gguf=GGUFForm(architecture="gptneox", keys=_gguf_keys),
    )
}
