"""Small decoders with random weights, for the tests of the engine."""

import math
from typing import Any

import torch

from engine.model.config import ExpertsConfig, LatentConfig, ModelConfig, YarnRopeScaling
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights


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


PLAIN_VARIANTS: dict[str, dict[str, Any]] = {
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
# What sets other families apart; calc counts these layer by layer.
VARIANTS: dict[str, dict[str, Any]] = PLAIN_VARIANTS | {
    "mixed": {  # Gemma's: windows in two of three layers, caps, norms on both sides, two rotary bases
        "n_layers": 3,
        "sliding_window": 5,
        "sliding_layers": (True, False, True),
        "local_rope_theta": 100.0,
        "qk_norm": True,
        "norm_offset": 1.0,
        "block": "sandwich",
        "embed_scale": 4.0,
        "attention_softcap": 5.0,
        "logit_softcap": 30.0,
        "activation": "gelu_tanh",
        "tied": True,
    },
    "partial": {"rotary_dim": 4, "rope_layers": (True, False)},
    "yarn": {"rope_scaling": YarnRopeScaling(factor=4.0, original_max_positions=8, magnitude=1.2)},
    "experts": {
        "experts": ExpertsConfig(n_experts=5, n_active=2, intermediate_size=8, normalize=True),
        "expert_layers": (False, True),
    },
    "latent": {
        "latent": LatentConfig(rank=8, rope_dim=4, nope_dim=6, value_dim=5),
        "n_kv_heads": 4,
        "head_dim": 10,
        "experts": ExpertsConfig(
            n_experts=6,
            n_active=2,
            intermediate_size=8,
            normalize=False,
            scale=1.5,
            shared_size=8,
            n_groups=3,
            n_active_groups=2,
        ),
    },
}


def decoder(variant: str = "llama", *, dtype: torch.dtype = torch.float64, **changes: Any) -> Decoder:
    config = llama_config(**(VARIANTS[variant] | changes))
    return Decoder(config, random_weights(config, dtype=dtype, seed=1))
