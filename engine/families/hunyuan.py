"""Hunyuan V1: a Llama that normalizes queries and keys per head after the rotation; also with experts."""

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config, head_dim_of
from engine.families.family import Family, GGUFForm
from engine.families.keys import Keys
from engine.families.tensors import renamed
from engine.model.config import ExpertsConfig, ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys, **changes: Any) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads"), "rms_norm_eps": 1e-5})
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        qk_norm_late=True,
        **_stretch(raw),
        **changes,
    )


def _moe_config(raw: Keys) -> ModelConfig:
    """Every layer has experts of the MLP's width, and a shared expert."""
    inner = raw.count("intermediate_size")
    for key, wanted in (("moe_intermediate_size", inner), ("num_shared_expert", 1)):
        if any(value != wanted for value in _each(raw, key)):
            raise UnsupportedArchitecture(f"config.json: {key} is not {wanted} in every layer; no other is supported")
    counts = {}
    for key in ("num_experts", "moe_topk"):
        stated = _each(raw, key) or [1]
        if any(value != stated[0] for value in stated):
            raise UnsupportedArchitecture(f"config.json: {key} differs between layers; that is not supported")
        counts[key] = Keys({key: stated[0]}).count(key)
    experts = ExpertsConfig(
        n_experts=counts["num_experts"],
        n_active=counts["moe_topk"],
        intermediate_size=inner,
        normalize=True,
        shared_size=inner,
    )
    return _config(raw, experts=experts)


def _each(raw: Keys, key: str) -> list[Any]:
    """A value of each layer, however it is stated."""
    value = raw.get(key)
    return value if isinstance(value, list) else [] if value is None else [value]


def _stretch(raw: Keys) -> dict[str, Any]:
    """A rotary base enlarged by a fixed ``alpha``, which the configs call dynamic."""
    rope = raw.section("rope_parameters") or raw.section("rope_scaling")
    if rope is None or (rope.get("rope_type") or rope.get("type")) != "dynamic" or not rope.get("alpha"):
        return {}
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    theta = (rope if rope.get("rope_theta") else raw).positive("rope_theta", 1e4)
    return {"rope_theta": theta * rope.positive("alpha") ** (head_dim / (head_dim - 2))}


_PARTS = {
    "self_attn.query_layernorm": "self_attn.q_norm",
    "self_attn.key_layernorm": "self_attn.k_norm",
    "mlp.gate.wg": "mlp.gate",
    "mlp.shared_mlp.gate_proj": "mlp.shared_experts.gate_proj",
    "mlp.shared_mlp.up_proj": "mlp.shared_experts.up_proj",
    "mlp.shared_mlp.down_proj": "mlp.shared_experts.down_proj",
}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {renamed(name, _PARTS, {}): stored for name, stored in tensors.items()}


def _gguf_moe_keys(file: GGUFFile) -> dict[str, Any]:
    inner = file.get("expert_feed_forward_length") or file.get("feed_forward_length")
    chosen = file.get("expert_used_count")
    return {"num_experts": file.get("expert_count"), "moe_topk": chosen, "intermediate_size": inner}


FAMILIES = {
    "hunyuan_v1_moe": Family(
        config=_moe_config, tensors=_tensors, gguf=GGUFForm(architecture="hunyuan-moe", keys=_gguf_moe_keys)
    ),
    "hunyuan_v1_dense": Family(config=_config, tensors=_tensors, gguf=GGUFForm(architecture="hunyuan-dense")),
}
