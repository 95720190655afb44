"""OLMo 1: norms without weights. OLMoE: experts; queries and keys normalized over all heads. OLMo 2 and 3: the same
query and key norms, and layer norms only after attention and MLP."""

from typing import Any

from engine.errors import UnsupportedArchitecture
from engine.families.common import (
    FULL,
    SLIDING,
    common_config,
    head_dim_of,
    layer_types,
    n_layers_of,
    rope_fields,
    window_fields,
)
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import expert_keys, layer_kinds
from engine.families.keys import Keys
from engine.families.llama import halves_restored
from engine.families.rope import read_rope, read_scaling
from engine.model.config import ExpertsConfig, ModelConfig
from engine.weights.gguf import GGUFFile


def _olmo_config(raw: Keys, **changes: Any) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads"), "max_position_embeddings": 2048})
    if raw.get("clip_qkv") is not None:
        raise UnsupportedArchitecture("config.json: clip_qkv is not supported")
    bias = raw.flag("attention_bias", False)
    return common_config(raw, qkv_bias=bias, o_bias=bias, **changes)


def _olmo1_config(raw: Keys) -> ModelConfig:
    return _olmo_config(raw, norm="layernorm", norm_weights=False, norm_eps=1e-5)


def _olmoe_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"rms_norm_eps": 1e-5, "max_position_embeddings": 4096})
    experts = ExpertsConfig(
        n_experts=raw.count("num_experts", 64),
        n_active=raw.count("num_experts_per_tok", 8),
        intermediate_size=raw.count("intermediate_size"),
        normalize=raw.flag("norm_topk_prob", False),
    )
    return _olmo_config(raw, qk_norm=True, qk_norm_kind="all", experts=experts)


def _olmo2_config(raw: Keys, **changes: Any) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads"), "rms_norm_eps": 1e-5})
    bias = raw.flag("attention_bias", False)
    return common_config(raw, block="post", qk_norm=True, qk_norm_kind="all", qkv_bias=bias, o_bias=bias, **changes)


def _olmo3_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"sliding_window": 4096, "max_position_embeddings": 2048})
    kinds = layer_types(raw) or [SLIDING if (i + 1) % 4 else FULL for i in range(n_layers_of(raw))]
    return _olmo2_config(raw, **_olmo3_rope(raw), **window_fields(raw, kinds))


def _olmo3_rope(raw: Keys) -> dict[str, Any]:
    """The scaling applies to layers with full attention; layers with a window use the unscaled base."""
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    both, theta = raw.section("rope_parameters"), 5e5
    far = both.section(FULL) if both is not None else None
    if far is None:
        rope = read_rope(raw, theta=theta, rotary_dim=head_dim)
        return {**rope_fields(rope), "local_rope_theta": rope.theta}
    near = both.section(SLIDING) if both is not None else None
    if near is not None and (near.get("rope_type") or "default") != "default":
        raise UnsupportedArchitecture(f"{near.where}: type {near.get('rope_type')!r} is not supported in local layers")
    rope = read_scaling(raw, far, far.positive("rope_theta", theta), rotary_dim=head_dim, aliases={})
    local = near.positive("rope_theta", theta) if near is not None else theta
    return {**rope_fields(rope), "local_rope_theta": local}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """Both have the architecture olmo2 in GGUF; files of OLMo 3 state a window."""
    window = file.get("attention.sliding_window")
    if window is None:
        return {}
    return {"model_type": "olmo3", "sliding_window": window, "layer_types": layer_kinds(file, every=4)}


def _olmo1_keys(file: GGUFFile) -> dict[str, Any]:
    return {"clip_qkv": file.get("attention.clamp_kqv")}


FAMILIES = {
    "olmo2": Family(config=_olmo2_config, gguf=GGUFForm(architecture="olmo2", keys=_gguf_keys)),
    "olmo3": Family(config=_olmo3_config),
    "olmo": Family(config=_olmo1_config, gguf=GGUFForm(architecture="olmo", keys=_olmo1_keys, restore=halves_restored)),
    "olmoe": Family(config=_olmoe_config, gguf=GGUFForm(architecture="olmoe", keys=expert_keys)),
}
