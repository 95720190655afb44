"""Phi-3: fused projections, partly rotated heads, LongRoPE. Phi-3.5-MoE: LayerNorm, biases, SparseMixer's experts."""

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config, head_dim_of, rope_fields, window_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import head_width
from engine.families.keys import Keys
from engine.families.mixtral import mixtral_tensors
from engine.families.rope import read_rope
from engine.families.tensors import all_loaded, split_qkv
from engine.model.config import ExpertsConfig, ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(
        {"num_key_value_heads": raw.get("num_attention_heads"), "original_max_position_embeddings": 4096}
    )
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    parameters = raw.section("rope_parameters") or raw
    partial = parameters.positive("partial_rotary_factor", raw.positive("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * partial)
    # Early Phi-3 files call LongRoPE "su" or "yarn".
    rope = read_rope(raw, rotary_dim=rotary_dim, aliases={"su": "longrope", "yarn": "longrope"})
    eps = raw.positive("rms_norm_eps", 1e-5)
    return common_config(raw, norm_eps=eps, rotary_dim=rotary_dim, **rope_fields(rope), **window_fields(raw, None))


def _moe_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": 8, "max_position_embeddings": 131_072})
    head_dim = head_dim_of(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    bias = raw.flag("attention_bias", False)
    experts = ExpertsConfig(
        n_experts=raw.count("num_local_experts", 16),
        n_active=raw.count("num_experts_per_tok", 2),
        intermediate_size=raw.count("intermediate_size"),
        normalize=False,
        jitter=raw.positive("router_jitter_noise", 0.01),
    )
    return common_config(
        raw,
        norm="layernorm",
        norm_eps=raw.positive("rms_norm_eps", 1e-5),
        qkv_bias=bias,
        o_bias=bias,
        head_bias=raw.flag("lm_head_bias", False),
        experts=experts,
        **rope_fields(read_rope(_with_magnitude(raw), rotary_dim=head_dim)),
        **window_fields(raw, None),
    )


def _with_magnitude(raw: Keys) -> Keys:
    """Add LongRoPE's magnitude, which is stated twice."""
    key = "rope_parameters" if raw.get("rope_parameters") is not None else "rope_scaling"
    scaling = raw.section(key)
    if scaling is None or scaling.get("short_mscale") is None:
        return raw
    short, long = scaling.positive("short_mscale"), scaling.positive("long_mscale")
    if short != long:
        raise UnsupportedArchitecture(f"{scaling.where}: long_mscale {long:g} is not short_mscale {short:g}")
    return Keys({**raw.document, key: {**scaling.document, "attention_factor": short}}, where=raw.where)


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    inner = config.intermediate_size
    for name, tensor in all_loaded(tensors).items():
        stem, _, kind = name.rpartition(".")
        if stem.endswith(".qkv_proj"):
            out |= split_qkv(tensor, stem.removesuffix(".qkv_proj"), kind, config)
        elif stem.endswith(".gate_up_proj"):
            prefix = stem.removesuffix("gate_up_proj")
            out |= {f"{prefix}gate_proj.{kind}": tensor[:inner], f"{prefix}up_proj.{kind}": tensor[inner:]}
        else:
            out[name] = tensor
    return out


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """llama.cpp uses no window here, even if the file states one."""
    own: dict[str, Any] = {}
    width, turned = head_width(file), file.get("rope.dimension_count")
    if width and turned and turned != width:
        own["partial_rotary_factor"] = turned / width
    long, short = (file.tensors.get(f"rope_factors_{name}.weight") for name in ("long", "short"))
    if long is not None and short is not None:
        own["rope_scaling"] = {
            "rope_type": "longrope",
            "long_factor": long.stored().load().tolist(),
            "short_factor": short.stored().load().tolist(),
            "original_max_position_embeddings": file.get("rope.scaling.original_context_length"),
            "attention_factor": file.get("rope.scaling.attn_factor"),
        }
    return own


FAMILIES = {
    "phimoe": Family(config=_moe_config, tensors=mixtral_tensors),
    "phi3": Family(
        config=_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="phi3", keys=_gguf_keys, fused_gate=True),
    ),
}
