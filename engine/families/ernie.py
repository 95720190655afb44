"""ERNIE 4.5 (also with experts) and Helium: Llamas that rotate adjacent pairs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.errors import UnsupportedArchitecture
from engine.families.common import common_config, n_layers_of
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import has_qkv_bias
from engine.families.keys import Keys
from engine.families.tensors import in_halves, pairs_restored
from engine.model.config import ExpertsConfig, ModelConfig
from engine.model.shapes import CHOICE_BIAS
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(
        {"head_dim": 128, "num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
    )
    bias = raw.flag("use_bias", False)
    return common_config(raw, theta=5e5, qkv_bias=bias, o_bias=bias, mlp_bias=bias)


def _moe_config(raw: Keys) -> ModelConfig:
    if raw.flag("use_bias", False):
        raise UnsupportedArchitecture("config.json: use_bias is true; experts without biases are supported")
    raw = raw.with_defaults({"num_key_value_heads": 4, "tie_word_embeddings": True, "rms_norm_eps": 1e-5})
    inner, every = raw.count("moe_intermediate_size", 1536), raw.count("moe_layer_interval", 1)
    n_layers, first, last = n_layers_of(raw), raw.whole("moe_layer_start_index", 1), raw.get("moe_layer_end_index")
    last = n_layers - 1 if last in (None, -1) else raw.whole("moe_layer_end_index")
    experts = ExpertsConfig(
        n_experts=raw.count("moe_num_experts", 64),
        n_active=raw.count("moe_k", 6),
        intermediate_size=inner,
        normalize=True,
        shared_size=inner * raw.whole("moe_num_shared_experts", 2),
        choice_bias=True,
    )
    layers = tuple((i + 1) % every == 0 and first <= i <= last for i in range(n_layers))
    return common_config(raw, theta=5e5, experts=experts, expert_layers=layers)


def _helium_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"head_dim": 128, "num_key_value_heads": 20, "rms_norm_eps": 1e-8})
    bias = raw.flag("attention_bias", False)
    return common_config(raw, theta=1e5, qkv_bias=bias, mlp_bias=raw.flag("mlp_bias", False))


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    out = {name: in_halves(name, stored, config) for name, stored in tensors.items()}
    return dict(_choice_bias(name, stored) for name, stored in out.items())


def _choice_bias(name: str, stored: Stored) -> tuple[str, Stored]:
    """The bias for the choice of experts, which has an extra dimension in these checkpoints."""
    if not name.endswith(f".moe_statics.{CHOICE_BIAS}"):
        return name, stored
    ours, shape = name.replace(".moe_statics.", ".gate."), (stored.shape[-1],)
    return ours, stored.reshape(shape) if isinstance(stored, Tensor) else stored.then(torch.flatten, shape)


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return {"use_bias": has_qkv_bias(file)}


def _gguf_moe_keys(file: GGUFFile) -> dict[str, Any]:
    return {
        **_gguf_keys(file),
        "moe_num_experts": file.get("expert_count"),
        "moe_k": file.get("expert_used_count"),
        "moe_intermediate_size": file.get("expert_feed_forward_length"),
        "moe_num_shared_experts": file.get("expert_shared_count") or 0,
        "moe_layer_start_index": file.get("leading_dense_block_count"),
        "moe_layer_interval": file.get("interleave_moe_layer_step"),
    }


FAMILIES = {
    "helium": Family(config=_helium_config, tensors=_tensors),
    "ernie4_5_moe": Family(
        config=_moe_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="ernie4_5-moe", keys=_gguf_moe_keys, restore=pairs_restored),
    ),
    "ernie4_5": Family(
        config=_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="ernie4_5", keys=_gguf_keys, restore=pairs_restored),
    ),
}
