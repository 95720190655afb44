"""Tensors of fused projections taken apart, and rotated heads put into the engine's order."""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored, loaded


def all_loaded(tensors: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Every tensor read, for families whose tensors change as a whole."""
    return {name: loaded(tensor) for name, tensor in tensors.items()}


def qkv_sizes(config: ModelConfig) -> dict[str, int]:
    """Rows of each part of a fused projection, in order."""
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}


def split_qkv(tensor: Tensor, prefix: str, kind: str, config: ModelConfig) -> dict[str, Stored]:
    """The parts of a fused projection as ``prefix.q_proj.kind`` and so on. Raises CheckpointError."""
    sizes = qkv_sizes(config)
    if tensor.size(0) != sum(sizes.values()):
        raise CheckpointError(
            f"{prefix}: the fused q, k and v have {tensor.size(0)} rows; expected {sum(sizes.values())}"
        )
    parts = torch.split(tensor, list(sizes.values()))
    return {f"{prefix}.{name}.{kind}": part for name, part in zip(sizes, parts, strict=True)}


def half_split(weight: Tensor, *, rotary_dim: int) -> Tensor:
    """Rows (..., rotary_dim, inputs) from pairs side by side (0 1 2 3) to halves (0 2 1 3)."""
    *lead, rows, inputs = weight.shape
    if rows != rotary_dim:
        raise CheckpointError(f"{rows} rows were to be rotated; expected {rotary_dim}")
    return weight.reshape(*lead, rotary_dim // 2, 2, inputs).transpose(-3, -2).reshape(*lead, rows, inputs)
