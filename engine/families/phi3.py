"""Phi-3: fused projections, partly rotated heads, LongRoPE."""

from collections.abc import Mapping
from typing import Any

from engine.families.common import common_config, head_dim_of, rope_fields, window_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import head_width
from engine.families.keys import Keys
from engine.families.rope import read_rope
from engine.families.tensors import all_loaded, split_qkv
from engine.model.config import ModelConfig
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
    own: dict[str, Any] = {"sliding_window": file.get("attention.sliding_window") or None}
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
    "phi3": Family(
        config=_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="phi3", keys=_gguf_keys, fused_gate=True),
    )
}
