"""Weights that come from no file: the shapes of a model, uninitialized or random."""

import math

import torch
from torch import Tensor

from engine.model.config import ModelConfig
from engine.model.shapes import parameter_shapes


def empty_weights(
    config: ModelConfig, *, dtype: torch.dtype = torch.float32, device: str = "meta"
) -> dict[str, Tensor]:
    """Uninitialized weights; on the meta device (the default) they take no memory."""
    return {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in parameter_shapes(config).items()}


def random_weights(config: ModelConfig, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a sensible scale (linear layers 1/sqrt(inputs), norms near 1), for tests."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        values = torch.empty(shape, dtype=torch.float64).normal_(generator=generator)
        if len(shape) == 2:
            values /= math.sqrt(shape[1]) if "embed" not in name else 1
        else:
            values = 0.1 * values + (1 if "norm" in name and name.endswith("weight") else 0)
        weights[name] = values.to(dtype)
    return weights
