"""Qwen3-Next: gated delta nets in most layers, gated attention in the others, many experts and a gated shared one."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from engine.families.common import FULL, common_config, layer_types, n_layers_of, partial_rope
from engine.families.family import Family
from engine.families.keys import Keys
from engine.families.qwen import expert_layers, shared_names
from engine.model.config import DeltaConfig, ExpertsConfig, ModelConfig
from engine.weights.lazy import Stored

_DEFAULTS = {"head_dim": 256, "num_key_value_heads": 2, "max_position_embeddings": 32_768}


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(_DEFAULTS)
    bias = raw.flag("attention_bias", False)
    every = raw.count("full_attention_interval", 4)
    kinds = layer_types(raw) or [FULL if (i + 1) % every == 0 else "linear_attention" for i in range(n_layers_of(raw))]
    recurrent = tuple(kind != FULL for kind in kinds)
    return common_config(
        raw,
        norm_offset=1.0,
        qk_norm=True,
        attention_gate=True,
        qkv_bias=bias,
        o_bias=bias,
        experts=_experts(raw),
        expert_layers=expert_layers(raw),
        recurrent=_delta(raw) if any(recurrent) else None,
        recurrent_layers=recurrent if any(recurrent) else (),
        **partial_rope(raw, raw.count("head_dim"), share=0.25),
    )


def _experts(raw: Keys) -> ExpertsConfig:
    return ExpertsConfig(
        n_experts=raw.count("num_experts", 512),
        n_active=raw.count("num_experts_per_tok", 10),
        intermediate_size=raw.count("moe_intermediate_size", 512),
        normalize=raw.flag("norm_topk_prob", True),
        shared_size=raw.count("shared_expert_intermediate_size", 512),
        shared_gate=True,
    )


def _delta(raw: Keys) -> DeltaConfig:
    return DeltaConfig(
        n_key_heads=raw.count("linear_num_key_heads", 16),
        n_value_heads=raw.count("linear_num_value_heads", 32),
        key_dim=raw.count("linear_key_head_dim", 128),
        value_dim=raw.count("linear_value_head_dim", 128),
        width=raw.count("linear_conv_kernel_dim", 4),
    )


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """q_proj holds the query and the gate of each head in turn."""
    out: dict[str, Stored] = {}
    for name, stored in shared_names(tensors).items():
        stem, _, kind = name.rpartition(".")
        if stem.endswith(".self_attn.q_proj") and stored.shape[0] == 2 * config.n_heads * config.head_dim:
            for part, ours in enumerate(("q_proj", "q_gate_proj")):
                out[f"{stem.removesuffix('q_proj')}{ours}.{kind}"] = _half(stored, part, config)
        else:
            out[name] = stored
    return out


def _half(stored: Stored, part: int, config: ModelConfig) -> Stored:
    change = partial(_take, part=part, config=config)
    shape = (stored.shape[0] // 2, *stored.shape[1:])
    return change(stored) if isinstance(stored, Tensor) else stored.then(change, shape)


def _take(tensor: Tensor, *, part: int, config: ModelConfig) -> Tensor:
    heads = tensor.reshape(config.n_heads, 2, config.head_dim, *tensor.shape[1:])
    return heads[:, part].reshape(-1, *tensor.shape[1:])


FAMILIES = {"qwen3_next": Family(config=_config, tensors=_tensors)}
