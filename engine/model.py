"""The decoder. STUB: the signatures are final, the bodies follow."""

import torch
from torch import Tensor

from engine.config import ModelConfig


class KVCache:
    """Placeholder; lives in engine/cache.py."""


class Decoder:
    """One decoder for both families. ``config``, ``dtype``, ``device``, ``n_parameters``, ``weight_bytes``."""

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    n_parameters: int
    weight_bytes: int

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: str = "meta") -> None:
        raise NotImplementedError

    def new_cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """A cache of ``capacity`` tokens a row."""
        raise NotImplementedError

    def forward(self, ids: Tensor, cache: KVCache | None = None, *, last_only: bool = False) -> Tensor:
        """ids (B, T) -> logits (B, T, V), or (B, 1, V) with ``last_only``."""
        raise NotImplementedError

    def with_positions(self, max_positions: int, *, seed: int = 0) -> "Decoder":
        """The same weights with room for more positions (random rows beyond a learned table)."""
        raise NotImplementedError
