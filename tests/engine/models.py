"""Small decoders with random weights, for the tests of the engine."""

import math
from typing import Any

import torch

from engine.config import ModelConfig
from engine.model import Decoder, random_weights


def llama_config(**changes: Any) -> ModelConfig:
    """A Llama of a few thousand parameters: 4 query heads on 2 KV heads, head_dim not hidden / heads."""
    head_dim = changes.get("head_dim", 6)
    fields: dict[str, Any] = {
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": head_dim,
        "hidden_size": 16,
        "intermediate_size": 24,
        "vocab_size": 29,
        "max_positions": 64,
        "norm": "rmsnorm",
        "norm_eps": 1e-5,
        "positions": "rope",
        "activation": "silu",
        "gated_mlp": True,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "head_bias": False,
        "qk_norm": False,
        "tied": False,
        "attention_scale": 1 / math.sqrt(head_dim),
    }
    return ModelConfig(**(fields | changes))


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "one-head-learned": {
        "n_heads": 1,
        "n_kv_heads": 1,
        "head_dim": 16,
        "norm": "layernorm",
        "positions": "learned",
        "activation": "relu",
        "gated_mlp": False,
        "mlp_bias": True,
        "head_bias": True,
    },
    "qwen2": {"qkv_bias": True, "tied": True},
    "qwen3": {"qk_norm": True, "n_kv_heads": 1},
    "sliding": {"sliding_window": 5},
    "biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "activation": "gelu", "attention_scale": 0.3},
}


def decoder(variant: str = "llama", *, dtype: torch.dtype = torch.float64, **changes: Any) -> Decoder:
    config = llama_config(**(VARIANTS[variant] | changes))
    return Decoder(config, random_weights(config, dtype=dtype, seed=1))
