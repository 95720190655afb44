"""Granite: a Llama whose embeddings, residuals, attention and logits are scaled; also with experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.families.common import common_config, n_layers_of
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import expert_keys, head_width
from engine.families.keys import Keys
from engine.families.llama import halves_restored
from engine.families.tensors import experts_apart, split_gate_up
from engine.model.config import ExpertsConfig, ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys, **changes: Any) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads")})
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=raw.flag("mlp_bias", False),
        embed_scale=raw.positive("embedding_multiplier", 1.0),
        residual_scale=raw.positive("residual_multiplier", 1.0),
        attention_scale=raw.positive("attention_multiplier", 1.0),
        logit_scale=1 / raw.positive("logits_scaling", 1.0),
        rope_layers=(False,) * n_layers_of(raw) if raw.get("position_embedding_type") == "nope" else (),
        **changes,
    )


def _moe_config(raw: Keys) -> ModelConfig:
    experts = ExpertsConfig(
        n_experts=raw.count("num_local_experts", 8),
        n_active=raw.count("num_experts_per_tok", 2),
        intermediate_size=raw.count("intermediate_size"),
        normalize=True,
        shared_size=raw.whole("shared_intermediate_size", 0),
    )
    return _config(raw, experts=experts)


_PARTS = {
    "block_sparse_moe.router.layer.weight": "mlp.gate.weight",
    "block_sparse_moe.input_linear.weight": "mlp.experts.gate_up_proj",
    "block_sparse_moe.output_linear.weight": "mlp.experts.down_proj",
    "shared_mlp.input_linear.weight": "mlp.shared_experts.gate_up_proj.weight",
    "shared_mlp.output_linear.weight": "mlp.shared_experts.down_proj.weight",
}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    size = config.experts.shared_size if config.experts is not None else 0
    shared = replace(config, intermediate_size=size) if size else config
    out: dict[str, Stored] = {}
    for theirs, stored in tensors.items():
        part = next((part for part in _PARTS if theirs.endswith(f".{part}")), None)
        name = theirs if part is None else theirs.removesuffix(part) + _PARTS[part]
        for ours, one in experts_apart(name, stored).items():
            out |= split_gate_up(ours, one, shared)
    return out


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    width = file.get("attention.key_length") or head_width(file) or 1
    return {
        "embedding_multiplier": file.get("embedding_scale"),
        "residual_multiplier": file.get("residual_scale"),
        "attention_multiplier": file.get("attention.scale") or width**-0.5,
        "logits_scaling": file.get("logit_scale"),
        "position_embedding_type": "nope" if file.get("rope.scaling.finetuned") is False else None,
    }


def _gguf_moe_keys(file: GGUFFile) -> dict[str, Any]:
    shared = file.get("expert_shared_feed_forward_length")
    return {**_gguf_keys(file), **expert_keys(file), "shared_intermediate_size": shared}


FAMILIES = {
    "granite": Family(config=_config, gguf=GGUFForm(architecture="granite", keys=_gguf_keys, restore=halves_restored)),
    "granitemoe": Family(
        config=_moe_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="granitemoe", keys=_gguf_moe_keys, restore=halves_restored),
    ),
    "granitemoeshared": Family(config=_moe_config, tensors=_tensors),
}
