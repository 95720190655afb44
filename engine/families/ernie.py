"""ERNIE 4.5 and Helium: Llamas whose heads turn in pairs side by side."""

from collections.abc import Mapping
from typing import Any

from engine.families.common import common_config
from engine.families.family import Family, GGUFForm
from engine.families.keys import Keys
from engine.families.tensors import in_halves, pairs_restored
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(
        {"head_dim": 128, "num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
    )
    bias = raw.flag("use_bias", False)
    return common_config(raw, theta=5e5, qkv_bias=bias, o_bias=bias, mlp_bias=bias)


def _helium_config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"head_dim": 128, "num_key_value_heads": 20, "rms_norm_eps": 1e-8})
    bias = raw.flag("attention_bias", False)
    return common_config(raw, theta=1e5, qkv_bias=bias, mlp_bias=raw.flag("mlp_bias", False))


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    return {name: in_halves(name, stored, config) for name, stored in tensors.items()}


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    return {"use_bias": "blk.0.attn_q.bias" in file.tensors}


FAMILIES = {
    "helium": Family(config=_helium_config, tensors=_tensors),
    "ernie4_5": Family(
        config=_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="ernie4_5", keys=_gguf_keys, restore=pairs_restored),
    ),
}
