"""Qwen3-Next and Qwen3.5: gated delta nets in most layers, gated attention in the others.

Qwen3-Next has many experts and a gated shared one; its projections are fused head by head. Qwen3.5 is dense, and
its projections are separate.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.families.common import FULL, common_config, layer_types, n_layers_of, partial_rope, text_section
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import expert_keys, turned_share
from engine.families.keys import Keys
from engine.families.qwen import expert_layers, shared_gate_row, shared_names
from engine.families.tensors import experts_apart, qkv_sizes, rows_in_order
from engine.model.config import DeltaConfig, ExpertsConfig, ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored, StoredTensor

_LINEAR = "linear_attention"
_DEFAULTS = {"head_dim": 256, "num_key_value_heads": 2, "max_position_embeddings": 32_768}


def _next_config(raw: Keys) -> ModelConfig:
    inner = raw.get("moe_intermediate_size") or 512  # the size of an MLP that no layer has
    raw = raw.with_defaults(_DEFAULTS | {"intermediate_size": inner})
    return _config(raw, experts=_experts(raw), expert_layers=expert_layers(raw))


def _dense_config(raw: Keys) -> ModelConfig:
    return _config(raw.with_defaults(_DEFAULTS | {"num_key_value_heads": 4}))


def _text_of(config: Callable[[Keys], ModelConfig]) -> Callable[[Keys], ModelConfig]:
    """The text model inside a multimodal one."""

    def read(raw: Keys) -> ModelConfig:
        return config(text_section(raw))

    return read


def _config(raw: Keys, **changes: Any) -> ModelConfig:
    bias = raw.flag("attention_bias", False)
    every = raw.count("full_attention_interval", 4)
    kinds = layer_types(raw) or [FULL if (i + 1) % every == 0 else _LINEAR for i in range(n_layers_of(raw))]
    recurrent = tuple(kind != FULL for kind in kinds)
    return common_config(
        raw,
        norm_offset=1.0,
        qk_norm=True,
        attention_gate=True,
        qkv_bias=bias,
        o_bias=bias,
        recurrent=_delta(raw) if any(recurrent) else None,
        recurrent_layers=recurrent if any(recurrent) else (),
        **partial_rope(raw, raw.count("head_dim"), share=0.25),
        **changes,
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


# --- tensors ----------------------------------------------------------------------------------------------


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    for name, stored in shared_names(tensors).items():
        for ours, one in experts_apart(name, stored).items():
            out |= _apart(ours, one, config)
    return out


def _apart(name: str, stored: Stored, config: ModelConfig) -> dict[str, Stored]:
    """Split a fused tensor into its parts; unchanged if it has no parts or an unexpected size."""
    stem, _, kind = name.rpartition(".")
    prefix, _, part = stem.rpartition(".")
    parts = _parts_of(part, config)
    if parts and stored.shape[0] == sum(size * n for size, n in parts.values()):
        return {f"{prefix}.{ours}.{kind}": rows for ours, rows in _taken(stored, parts).items()}
    return {name: stored}


def _parts_of(part: str, config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The parts of a fused projection: rows per head of each part in order, and the number of heads."""
    d = config.recurrent
    if part == "q_proj":
        return {"q_proj": (config.head_dim, config.n_heads), "q_gate_proj": (config.head_dim, config.n_heads)}
    if not isinstance(d, DeltaConfig):
        return {}
    n, per_key = d.n_key_heads, d.n_value_heads // d.n_key_heads
    if part == "in_proj_qkvz":
        values = per_key * d.value_dim
        return {"query": (d.key_dim, n), "key": (d.key_dim, n), "value": (values, n), "in_proj_z": (values, n)}
    return {"in_proj_b": (per_key, n), "in_proj_a": (per_key, n)} if part == "in_proj_ba" else {}


def _taken(stored: Stored, parts: Mapping[str, tuple[int, int]]) -> dict[str, Stored]:
    """The rows of each part over all heads; query, key and value stay one projection."""
    n_heads = next(iter(parts.values()))[1]
    by_head = torch.split(torch.arange(stored.shape[0]).view(n_heads, -1), [size for size, _ in parts.values()], 1)
    rows = {name: some.flatten() for name, some in zip(parts, by_head, strict=True)}
    if "query" in rows:
        rows = {"in_proj_qkv": torch.cat([rows.pop(name) for name in ("query", "key", "value")]), **rows}
    return rows_in_order(stored, rows)


# --- GGUF -------------------------------------------------------------------------------------------------


def _delta_keys(file: GGUFFile) -> dict[str, Any]:
    n_layers, stated = file.get("block_count"), file.get("attention.recurrent_layers")
    n_values = file.get("ssm.time_step_rank")
    inner = file.get("ssm.inner_size")
    return {
        "linear_num_key_heads": file.get("ssm.group_count"),
        "linear_num_value_heads": n_values,
        "linear_key_head_dim": file.get("ssm.state_size"),
        "linear_value_head_dim": inner // n_values if isinstance(inner, int) and n_values else None,
        "linear_conv_kernel_dim": file.get("ssm.conv_kernel"),
        "full_attention_interval": file.get("full_attention_interval"),
        "layer_types": [_LINEAR if r else FULL for r in stated] if isinstance(stated, list) and n_layers else None,
        **turned_share(file),
    }


def _next_keys(file: GGUFFile) -> dict[str, Any]:
    inner = file.get("feed_forward_length") or file.get("expert_feed_forward_length")
    return {
        **_delta_keys(file),
        **expert_keys(file),
        "intermediate_size": inner,
        "shared_expert_intermediate_size": file.get("expert_shared_feed_forward_length") or inner,
        "norm_topk_prob": True,
    }


def _tiled(config: ModelConfig) -> ModelConfig:
    """Qwen3.5's conversion reorders value heads to match the way ggml repeats key heads."""
    delta = config.recurrent
    return replace(config, recurrent=replace(delta, tiled=True)) if isinstance(delta, DeltaConfig) else config


_RECURRENT = {
    "ssm_in": "linear_attn.in_proj_qkvz",
    "attn_gate": "linear_attn.in_proj_z",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}


def _gguf_parts(config: ModelConfig) -> dict[str, str]:
    return _RECURRENT if config.recurrent is not None else {}


def _gguf_apart(name: str, stored: StoredTensor, config: ModelConfig) -> dict[str, StoredTensor]:
    """Undo the conversion: it exponentiated the decay and dropped a dimension of the convolution."""
    stored = shared_gate_row(name, stored, config)
    if name.endswith(".in_proj_qkv.weight") and _attends(int(name.split(".")[2]), config):
        return _attention_apart(name.removesuffix("linear_attn.in_proj_qkv.weight"), stored, config)
    if name.endswith(".dt_bias.bias"):
        return {name.removesuffix(".bias"): stored}
    if name.endswith(".A_log"):
        return {name: stored.then(lambda decay: decay.neg().log())}
    if name.endswith(".conv1d.weight") and len(stored.shape) == 2:
        return {name: stored.then(_channels, (stored.shape[0], 1, stored.shape[1]))}
    return {ours: part for ours, part in _apart(name, stored, config).items() if isinstance(part, StoredTensor)}


def _attends(layer: int, config: ModelConfig) -> bool:
    return layer < config.n_layers and not config.layer(layer).recurrent


def _attention_apart(prefix: str, stored: StoredTensor, config: ModelConfig) -> dict[str, StoredTensor]:
    """Split the fused queries with gates, keys and values of a layer with attention."""
    sizes, start = qkv_sizes(config), 0
    out: dict[str, StoredTensor] = {}
    for part, size in (sizes | {"q_proj": 2 * sizes["q_proj"]}).items():
        rows = stored.rows(start, start + size)
        out |= _gguf_apart(f"{prefix}self_attn.{part}.weight", rows, config)
        start += size
    return out


def _channels(kernel: Tensor) -> Tensor:
    return kernel[:, None]


FAMILIES = {
    "qwen3_next": Family(
        config=_next_config,
        tensors=_tensors,
        gguf=GGUFForm(
            architecture="qwen3next", keys=_next_keys, parts=_gguf_parts, apart=_gguf_apart, adds_norm_offset=True
        ),
    ),
    "qwen3_5": Family(config=_text_of(_dense_config), tensors=_tensors),
    "qwen3_5_moe": Family(config=_text_of(_next_config), tensors=_tensors),
    "qwen3_5_moe_text": Family(
        config=_next_config,
        tensors=_tensors,
        gguf=GGUFForm(
            architecture="qwen35moe",
            keys=_next_keys,
            parts=_gguf_parts,
            apart=_gguf_apart,
            adapted=_tiled,
            adds_norm_offset=True,
        ),
    ),
    "qwen3_5_text": Family(
        config=_dense_config,
        tensors=_tensors,
        gguf=GGUFForm(
            architecture="qwen35",
            keys=_delta_keys,
            parts=_gguf_parts,
            apart=_gguf_apart,
            adapted=_tiled,
            adds_norm_offset=True,
        ),
    ),
}
