"""Qwen2 and Qwen3, also with experts."""

from collections.abc import Mapping
from typing import Any

from engine.errors import ConfigError
from engine.families.common import FULL, SLIDING, common_config, layer_types, n_layers_of, window_fields
from engine.families.deepseek import experts_of_v3
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import expert_keys, has_qkv_bias, sigmoid_keys
from engine.families.keys import Keys
from engine.model.config import ExpertsConfig, ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored, StoredTensor


def _qwen_windows(raw: Keys) -> dict[str, Any]:
    """Qwen's window applies only if it is enabled, and from layer ``max_window_layers`` on."""
    if not raw.flag("use_sliding_window", False):
        return {}
    kinds = layer_types(raw)
    if kinds is None:
        first = raw.whole("max_window_layers", 28)
        kinds = [SLIDING if i >= first else FULL for i in range(n_layers_of(raw))]
    return window_fields(raw, kinds)


def _qwen2_config(raw: Keys) -> ModelConfig:
    return common_config(raw, qkv_bias=True, **_qwen_windows(raw))


def _qwen3_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"head_dim": 128})  # Qwen3's heads are not hidden_size / n_heads wide
    bias = raw.flag("attention_bias", False)
    return common_config(raw, qkv_bias=bias, o_bias=bias, qk_norm=True, **_qwen_windows(raw))


def expert_layers(raw: Keys) -> tuple[bool, ...]:
    """Which layers have experts: every ``decoder_sparse_step``-th, except ``mlp_only_layers``."""
    n_layers, step = n_layers_of(raw), raw.count("decoder_sparse_step", 1)
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ConfigError(f"config.json: mlp_only_layers is {dense!r}; expected a list of layers")
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(n_layers))


def shared_names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The shared expert under our name."""
    return {name.replace(".mlp.shared_expert.", ".mlp.shared_experts."): stored for name, stored in tensors.items()}


def _qwen2_moe_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": 16})
    return common_config(
        raw,
        qkv_bias=raw.flag("qkv_bias", True),
        experts=ExpertsConfig(
            n_experts=raw.count("num_experts", 60),
            n_active=raw.count("num_experts_per_tok", 4),
            intermediate_size=raw.count("moe_intermediate_size", 1408),
            normalize=raw.flag("norm_topk_prob", False),
            shared_size=raw.count("shared_expert_intermediate_size", 5632),
            shared_gate=True,
        ),
        expert_layers=expert_layers(raw),
        **_qwen2_moe_windows(raw),
    )


def _qwen2_moe_windows(raw: Keys) -> dict[str, Any]:
    """If enabled, a window in every other layer before ``max_window_layers``."""
    if not raw.flag("use_sliding_window", False):
        return {}
    last = raw.whole("max_window_layers", 28)
    kinds = layer_types(raw) or [SLIDING if i % 2 == 0 and i < last else FULL for i in range(n_layers_of(raw))]
    return window_fields(raw, kinds)


def _qwen2_moe_tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return shared_names(tensors)


def _qwen3_moe_config(raw: Keys) -> ModelConfig:
    n_experts = raw.count("num_experts", raw.get("num_local_experts") or 128)
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        experts=ExpertsConfig(
            n_experts=n_experts,
            n_active=raw.count("num_experts_per_tok", 8),
            intermediate_size=raw.count("moe_intermediate_size", 768),
            normalize=raw.flag("norm_topk_prob", False),
        ),
        expert_layers=expert_layers(raw),
        **(window_fields(raw, None) if raw.flag("use_sliding_window", False) else {}),
    )


def _dots1_config(raw: Keys) -> ModelConfig:
    """dots.llm1: attention of Qwen3, experts of DeepSeek-V3."""
    raw = raw.with_defaults({"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 2048})
    bias = raw.flag("attention_bias", False)
    kinds = layer_types(raw) or [FULL] * n_layers_of(raw)
    return common_config(
        raw, qkv_bias=bias, o_bias=bias, qk_norm=True, **experts_of_v3(raw), **window_fields(raw, kinds)
    )


def _dots1_keys(file: GGUFFile) -> dict[str, Any]:
    return sigmoid_keys(file) | {"sliding_window": None}


def _qwen3_moe_keys(file: GGUFFile) -> dict[str, Any]:
    return expert_keys(file) | {"norm_topk_prob": True}


def _qwen2_moe_keys(file: GGUFFile) -> dict[str, Any]:
    return expert_keys(file) | {
        "shared_expert_intermediate_size": file.get("expert_shared_feed_forward_length")
        or file.get("feed_forward_length"),
        "qkv_bias": has_qkv_bias(file),
    }


def shared_gate_row(name: str, stored: StoredTensor, config: ModelConfig) -> StoredTensor:
    """Make a one-row matrix of the shared expert's gate, which GGUF files store as a vector."""
    if not name.endswith(".shared_expert_gate.weight") or len(stored.shape) != 1:
        return stored
    return stored.then(lambda tensor: tensor[None], (1, *stored.shape))


FAMILIES = {
    "qwen2": Family(config=_qwen2_config, gguf=GGUFForm(architecture="qwen2")),
    "qwen3": Family(config=_qwen3_config, gguf=GGUFForm(architecture="qwen3")),
    "dots1": Family(
        config=_dots1_config, gguf=GGUFForm(architecture="dots1", keys=_dots1_keys, off=("sliding_window",))
    ),
    "qwen2_moe": Family(
        config=_qwen2_moe_config,
        tensors=_qwen2_moe_tensors,
        gguf=GGUFForm(architecture="qwen2moe", keys=_qwen2_moe_keys, restore=shared_gate_row),
    ),
    "qwen3_moe": Family(config=_qwen3_moe_config, gguf=GGUFForm(architecture="qwen3moe", keys=_qwen3_moe_keys)),
}
