"""GLM-4: half of each head is rotated, in adjacent pairs; gate and up in one matrix; GLM-4-0414 has post-norms too.

GLM-4.5 to 4.7: DeepSeek-V3's experts with partly rotated heads, rotated in halves.
"""

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config, head_dim_of, partial_rope
from engine.families.deepseek import experts_of_v3
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import both_sides, sigmoid_keys, turned_share
from engine.families.keys import Keys
from engine.families.tensors import in_halves, pairs_restored, renamed, split_gate_up
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _glm_config(raw: Keys, **changes: Any) -> ModelConfig:
    raw = raw.with_defaults({"head_dim": 128, "num_key_value_heads": 2, "rms_norm_eps": 1.5625e-7})
    bias = raw.flag("attention_bias", True)
    return common_config(raw, qkv_bias=bias, **partial_rope(raw, raw.count("head_dim"), share=0.5), **changes)


def _glm4_moe_config(raw: Keys) -> ModelConfig:
    defaults = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072}
    experts = {"n_routed_experts": 128, "moe_intermediate_size": 1408, "num_experts_per_tok": 8, "n_shared_experts": 1}
    raw = raw.with_defaults(defaults | experts | {"first_k_dense_replace": 1, "norm_topk_prob": True})
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    return common_config(
        raw,
        head_dim=head_dim,
        qkv_bias=raw.flag("attention_bias", False),
        qk_norm=raw.flag("use_qk_norm", False),
        **experts_of_v3(raw),
        **partial_rope(raw, head_dim, share=0.5),
    )


def _glm4_config(raw: Keys) -> ModelConfig:
    return _glm_config(raw, block="sandwich")


_GLM4_PARTS = {
    "post_self_attn_layernorm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "post_mlp_layernorm": "post_feedforward_layernorm",
}


def _glm_tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    for name, stored in tensors.items():
        out |= split_gate_up(name, in_halves(name, stored, config), config)
    return out


def _glm4_tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return _glm_tensors({renamed(name, _GLM4_PARTS, {}): stored for name, stored in tensors.items()}, config)


def _glm4_keys(file: GGUFFile) -> dict[str, Any]:
    sections = file.get("rope.dimension_sections")
    if isinstance(sections, list) and len([size for size in sections[:2] if size]) == 2:
        raise UnsupportedArchitecture(f"{file.path} has positions of images (M-RoPE), which are not supported in glm4")
    return turned_share(file)


def _glm4_moe_keys(file: GGUFFile) -> dict[str, Any]:
    norms = "blk.0.attn_q_norm.weight" in file.tensors
    return {**sigmoid_keys(file), **turned_share(file), "use_qk_norm": norms}


FAMILIES = {
    "glm": Family(
        config=_glm_config,
        tensors=_glm_tensors,
        gguf=GGUFForm(architecture="chatglm", keys=turned_share, restore=pairs_restored, fused_gate=True),
    ),
    "glm4_moe": Family(config=_glm4_moe_config, gguf=GGUFForm(architecture="glm4moe", keys=_glm4_moe_keys)),
    "glm4": Family(
        config=_glm4_config,
        tensors=_glm4_tensors,
        gguf=GGUFForm(architecture="glm4", keys=_glm4_keys, parts=both_sides, restore=pairs_restored, fused_gate=True),
    ),
}
