"""The KV cache: one preallocated block of memory, the only thing that changes while generating."""

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import CacheError, OutOfMemory


class KVCache:
    """Keys and values of all layers in one tensor (n_layers, 2, B, n_kv_heads, capacity, head_dim).

    Every layer `append`s the same new tokens; then the decoder, the one owner of the count, calls
    `advance` once. Rows of a batch share one length.
    """

    __slots__ = ("_layers", "batch_size", "capacity", "length", "storage")

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1 or batch_size < 1:
            raise CacheError(f"a cache of {capacity} tokens for {batch_size} rows holds nothing; use at least 1")
        shape = (config.n_layers, 2, batch_size, config.n_kv_heads, capacity, config.head_dim)
        try:
            self.storage = torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError as error:  # torch has no narrower class for a failed allocation on the CPU
            size = cache_bytes(config, capacity, batch_size=batch_size, dtype=dtype)
            raise OutOfMemory(f"a KV cache of {size:,} bytes ({capacity:,} tokens) does not fit") from error
        self._layers = self.storage.unbind(0)
        self.batch_size = batch_size
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Write kv (2, B, n_kv_heads, T, head_dim) after the tokens held; all keys and all values so far.

        Both results (B, n_kv_heads, length + T, head_dim) are views: nothing held is copied. The decoder
        has checked the room (`require`) before the first layer.
        """
        n_new = kv.size(3)
        held = self._layers[layer]
        held.narrow(3, self.length, n_new).copy_(kv)
        keys, values = held.narrow(3, 0, self.length + n_new).unbind(0)
        return keys, values

    def require(self, n_rows: int, n_new: int) -> None:
        """Raise CacheError unless ``n_new`` more tokens of ``n_rows`` rows fit."""
        if n_rows != self.batch_size:
            raise CacheError(f"the cache was made for {self.batch_size} rows, not {n_rows}")
        if self.length + n_new > self.capacity:
            raise CacheError(f"the cache holds {self.length:,} of {self.capacity:,} tokens; {n_new:,} more do not fit")

    def advance(self, n_new: int) -> None:
        """Count ``n_new`` tokens that every layer has appended."""
        self.length += n_new

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated: 2 x n_layers x B x n_kv_heads x capacity x head_dim x element size."""
        return self.storage.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token takes in all layers and rows."""
        return self.nbytes // self.capacity

    @property
    def used_bytes(self) -> int:
        """Bytes of the tokens held."""
        return self.bytes_per_token * self.length


def cache_bytes(config: ModelConfig, capacity: int, *, batch_size: int = 1, dtype: torch.dtype) -> int:
    """Bytes a cache would take: 2 L B K S H b, without allocating it."""
    elements = 2 * config.n_layers * batch_size * config.n_kv_heads * capacity * config.head_dim
    return elements * dtype.itemsize
