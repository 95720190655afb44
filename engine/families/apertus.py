"""Apertus: a Llama with a query and key norm per head, and xIELU instead of a gated MLP."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.families.common import common_config
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import rope_scaling
from engine.families.keys import Keys
from engine.families.tensors import renamed
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored, StoredTensor

_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12_000_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads"), "rms_norm_eps": 1e-5})
    raw = raw.with_defaults({"hidden_act": "xielu", "max_position_embeddings": 65_536})
    if raw.get("rope_parameters") is None and raw.get("rope_scaling") is None:
        raw = raw.with_defaults({"rope_parameters": _ROPE})
    bias = raw.flag("attention_bias", False)
    return common_config(raw, theta=12e6, qk_norm=True, gated_mlp=False, qkv_bias=bias, o_bias=bias)


_PARTS = {"attention_layernorm": "input_layernorm", "feedforward_layernorm": "post_attention_layernorm"}
_CONSTANTS = (".act_fn.beta", ".act_fn.eps")


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {renamed(name, _PARTS, {}): t for name, t in tensors.items() if not name.endswith(_CONSTANTS)}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return {"hidden_act": "xielu", "rope_scaling": rope_scaling(file) or {"rope_type": "default"}}


def _gguf_bends(file: GGUFFile, config: ModelConfig) -> dict[str, StoredTensor]:
    """The weights of the activation function, which GGUF files store as metadata."""
    out: dict[str, StoredTensor] = {}
    for end in ("p", "n"):
        values = file.metadata.get(f"xielu.alpha_{end}")
        each = values if isinstance(values, list) else [values] * config.n_layers
        if len(each) < config.n_layers or not all(isinstance(value, float) for value in each):
            raise CheckpointError(f"{file.path}: xielu.alpha_{end} must be a number for each layer")
        for layer, value in enumerate(each[: config.n_layers]):
            out[f"model.layers.{layer}.mlp.act_fn.alpha_{end}"] = _constant(value)
    return out


def _constant(value: float) -> StoredTensor:
    def load() -> Tensor:
        return torch.tensor([value])

    return StoredTensor(shape=(1,), dtype=torch.float32, load=load)


FAMILIES = {
    "apertus": Family(
        config=_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="apertus", keys=_gguf_keys, more=_gguf_bends),
    )
}
