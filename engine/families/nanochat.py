"""nanochat: norms without weights, squared ReLU, heads rotated in the opposite direction."""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.families.common import common_config
from engine.families.family import Family
from engine.families.keys import Keys
from engine.families.tensors import renamed
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored

_DEFAULTS = {"hidden_act": "relu2", "final_logit_softcapping": 15.0, "max_position_embeddings": 2048}


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(_DEFAULTS | {"num_key_value_heads": raw.get("num_attention_heads")})
    bias = raw.flag("attention_bias", False)
    return common_config(
        raw,
        norm_weights=False,
        embed_norm=True,
        gated_mlp=False,
        qk_norm=True,  # the original does this after the rotation, which is equivalent: a rotation keeps the length
        qkv_bias=bias,
        o_bias=bias,
        logit_softcap=raw.optional_positive("final_logit_softcapping"),
    )


_PARTS = {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    ours = {renamed(name, _PARTS, {}): stored for name, stored in tensors.items()}
    return {name: _other_way_round(name, stored, config) for name, stored in ours.items()}


def _other_way_round(name: str, stored: Stored, config: ModelConfig) -> Stored:
    """Rotating (a, b) by -x equals rotating (b, a) by x: swap the halves of each head in queries and keys."""
    if (".self_attn.q_proj." not in name and ".self_attn.k_proj." not in name) or stored.shape[0] % config.head_dim:
        return stored

    def change(tensor: Tensor) -> Tensor:
        halves = tensor.reshape(-1, 2, config.head_dim // 2, *tensor.shape[1:])
        return torch.flip(halves, (1,)).reshape(tensor.shape)

    return change(stored) if isinstance(stored, Tensor) else stored.reordered(change, config.head_dim)


FAMILIES = {"nanochat": Family(config=_config, tensors=_tensors)}
