"""Four KV cache layouts: all keys and values (`KVCache`), only the window of sliding layers (`WindowCache`), one
compressed vector per token (`LatentCache`), 8 bits per value (`Int8Cache`).

Shapes: L layers, B rows, K KV heads, T new tokens, S tokens in sight, h head_dim.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.errors import CacheError, OutOfMemory
from engine.model.cache import SeenText
from engine.model.config import ModelConfig


class _Counted:
    """The base of all caches: their size and token count.

    Every layer appends; then the decoder, which owns the cache, advances the count. Subclasses allocate their memory
    in `_allocate`. Raises CacheError for a size of zero, and OutOfMemory.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        padding: Sequence[int] | None = None,
    ) -> None:
        if capacity < 1 or batch_size < 1:
            raise CacheError(f"a cache of {capacity} tokens for {batch_size} rows holds nothing; use at least 1")
        self.batch_size = batch_size
        self.capacity = capacity
        self.length = 0
        self.seen = SeenText()
        self.padding = _padding(padding, batch_size, device)
        self._dtype = dtype
        self._device = device
        self._allocate(config)

    def _allocate(self, config: ModelConfig) -> None:
        raise NotImplementedError

    def _empty(self, shape: tuple[int, ...], *, n_tokens: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialized memory for ``n_tokens`` tokens. Raises OutOfMemory."""
        dtype = dtype or self._dtype
        try:
            return torch.empty(shape, dtype=dtype, device=self._device)
        except RuntimeError as error:  # torch has no more specific exception for a failed allocation on the CPU
            size = math.prod(shape) * dtype.itemsize
            raise OutOfMemory(f"a KV cache of {size:,} bytes ({n_tokens:,} tokens) does not fit") from error

    def require(self, n_rows: int, n_new: int) -> None:
        if n_rows != self.batch_size:
            raise CacheError(f"the cache was made for {self.batch_size} rows, not {n_rows}")
        if self.length + n_new > self.capacity:
            raise CacheError(f"the cache holds {self.length:,} of {self.capacity:,} tokens; {n_new:,} more do not fit")

    @property
    def rows_at_once(self) -> int:
        return self.capacity

    def begin_rows(self, n_new: int) -> None:
        self.require(1, n_new)

    def turn_to(self, length: int) -> None:
        self.length = length

    def advance(self, n_new: int) -> None:
        self.length += n_new

    def truncate(self, length: int) -> int:
        self.length = min(self.length, length)
        return self.length

    def reset(self) -> None:
        self.length = 0

    def key_positions(self, n_new: int, window: int | None) -> Tensor:
        return torch.arange(self.length + n_new, device=self._device)


class Store(NamedTuple):
    """The memory of one layer: keys, then values (2, B, K, slots, h), and with 8 bits one scale per vector.

    With latent attention: one vector per token (B, slots, rank + rope_dim). Token t of a row is in slot t, or in slot
    t mod slots when there are fewer slots than tokens.
    """

    values: Tensor
    scales: Tensor | None = None


class _Overwritten(NamedTuple):
    """The values that a pass has overwritten, per layer: (2, B, K, T, h), or None if nothing useful was there."""

    first: int
    n_new: int
    before: list[Tensor | None]


class KVCache(_Counted):
    """Keys and values of all layers in one tensor (L, 2, B, K, capacity, h)."""

    def _allocate(self, config: ModelConfig) -> None:
        shape = (config.n_layers, 2, self.batch_size, config.n_kv_heads, self.capacity, config.head_dim)
        self.storage = self._empty(shape, n_tokens=self.capacity)
        self._layers = self.storage.unbind(0)
        self.stores = [Store(layer) for layer in self._layers]

    def append(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """new (2, B, K, T, h) goes after the tokens held. Both results are views: no cached value is copied.

        The decoder has checked the free space (`require`) before the first layer.
        """
        n_new = new.size(3)
        held = self._layers[layer]
        held.narrow(3, self.length, n_new).copy_(new)
        keys, values = held.narrow(3, 0, self.length + n_new).unbind(0)
        return keys, values

    @property
    def nbytes(self) -> int:
        """2 x L x B x K x capacity x h x element size."""
        return self.storage.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token position, over all layers and rows."""
        return self.nbytes // self.capacity

    @property
    def used_bytes(self) -> int:
        """Bytes of the tokens held."""
        return self.bytes_per_token * self.length


class WindowCache(_Counted):
    """Like `KVCache`, but a sliding layer stores only its window, in a ring buffer of min(capacity, window) tokens."""

    def _allocate(self, config: ModelConfig) -> None:
        self._windows = [kind.window for kind in config.layers()]
        self._slots = [self.capacity if window is None else min(self.capacity, window) for window in self._windows]
        self._layers = [
            self._empty((2, self.batch_size, config.n_kv_heads, n, config.head_dim), n_tokens=n) for n in self._slots
        ]
        self.stores = [Store(layer) for layer in self._layers]
        self._overwritten: _Overwritten | None = None

    @property
    def rows_at_once(self) -> int:
        """The number of slots of the smallest ring buffer, so that no slot is written twice."""
        return min(self._slots)

    def require(self, n_rows: int, n_new: int) -> None:
        self._restore()
        super().require(n_rows, n_new)

    def begin_rows(self, n_new: int) -> None:
        super().begin_rows(n_new)
        first, slots = self.length, self._slots
        turned = [first + n_new > n for n in slots]
        places = [torch.arange(first, first + n_new, device=self._device) % n for n in slots]
        self._overwritten = _Overwritten(
            first,
            n_new,
            [
                layer.index_select(3, at) if lost else None
                for layer, at, lost in zip(self._layers, places, turned, strict=True)
            ],
        )

    def _restore(self) -> None:
        """Restore the values that uncounted tokens have overwritten."""
        done, self._overwritten = self._overwritten, None
        if done is None or self.length >= done.first + done.n_new:
            return
        taken_back = torch.arange(self.length, done.first + done.n_new, device=self._device)
        for layer, slots, before in zip(self._layers, self._slots, done.before, strict=True):
            if before is not None:
                layer.index_copy_(3, taken_back % slots, before[:, :, :, self.length - done.first :])

    def append(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """new (2, B, K, T, h). For one new token the results are views in ring order, harmless for attention."""
        held, window, slots, n_new = self._layers[layer], self._windows[layer], self._slots[layer], new.size(3)
        if window is None:
            held.narrow(3, self.length, n_new).copy_(new)
            keys, values = held.narrow(3, 0, self.length + n_new).unbind(0)
            return keys, values
        if n_new == 1:
            held.narrow(3, self.length % slots, 1).copy_(new)
            keys, values = held.narrow(3, 0, min(self.length + 1, slots)).unbind(0)
            return keys, values
        # The first new token still attends to a window that the last new tokens overwrite: read before writing.
        before = self.key_positions(n_new, window)[: -n_new or None] % slots
        seen = torch.cat((held.index_select(3, before), new), 3)
        n_kept = min(n_new, slots)
        kept = torch.arange(self.length + n_new - n_kept, self.length + n_new, device=self._device) % slots
        held.index_copy_(3, kept, new[:, :, :, n_new - n_kept :])
        keys, values = seen.unbind(0)
        return keys, values

    def key_positions(self, n_new: int, window: int | None) -> Tensor:
        if window is None:
            return super().key_positions(n_new, window)
        newest = self.length + n_new - 1
        if n_new > 1:
            return torch.arange(max(0, self.length - window + 1), newest + 1, device=self._device)
        slots = min(self.capacity, window)
        slot = torch.arange(min(newest + 1, slots), device=self._device)
        return newest - (newest - slot) % slots

    def truncate(self, length: int) -> int:
        """All or nothing: once a ring buffer has wrapped round, the tokens before its window are lost."""
        self._restore()
        windows = [window for window in self._windows if window is not None]
        turned = any(self.length > window for window in windows)
        if length < self.length and turned:
            length = 0
        return super().truncate(length)

    def reset(self) -> None:
        self._overwritten = None
        super().reset()

    @property
    def nbytes(self) -> int:
        """2 x B x K x h x element size x the token slots of each layer, summed."""
        return sum(layer.nbytes for layer in self._layers)

    @property
    def used_bytes(self) -> int:
        """Bytes of the tokens held."""
        return sum(
            layer.nbytes // slots * min(self.length, slots)
            for layer, slots in zip(self._layers, self._slots, strict=True)
        )


class LatentCache(_Counted):
    """The cache of latent attention: one vector per token and layer, (L, B, capacity, rank + rope_dim)."""

    def _allocate(self, config: ModelConfig) -> None:
        if config.latent is None:
            raise CacheError("a latent cache was asked for; this model's attention keeps keys and values")
        self._rank = config.latent.rank
        shape = (config.n_layers, self.batch_size, self.capacity, config.latent.width)
        self.storage = self._empty(shape, n_tokens=self.capacity)
        self.stores = [Store(layer) for layer in self.storage]

    def append(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """new (B, T, rank + rope_dim); gives keys (B, 1, S, rank + rope_dim) and values (their first rank entries)."""
        held, n_new = self.storage[layer], new.size(1)
        held.narrow(1, self.length, n_new).copy_(new)
        keys = held.narrow(1, 0, self.length + n_new)[:, None]
        return keys, keys[..., : self._rank]

    @property
    def nbytes(self) -> int:
        """L x B x capacity x (rank + rope_dim) x element size."""
        return self.storage.nbytes

    @property
    def used_bytes(self) -> int:
        """Bytes of the tokens held."""
        return self.nbytes // self.capacity * self.length


class Int8Cache(_Counted):
    """Keys and values in 8 bits with one float32 scale per head and token: max |x| maps to 127.

    The attention layers get them dequantized to ``dtype``, which saves memory but no time; a compiled step reads the
    8-bit values directly.
    """

    def _allocate(self, config: ModelConfig) -> None:
        shape = (config.n_layers, 2, self.batch_size, config.n_kv_heads, self.capacity, config.head_dim)
        self.storage = self._empty(shape, n_tokens=self.capacity, dtype=torch.int8)
        self.scales = self._empty((*shape[:-1], 1), n_tokens=self.capacity, dtype=torch.float32)
        self.stores = [Store(*layer) for layer in zip(self.storage, self.scales, strict=True)]

    def append(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """new (2, B, K, T, h) is quantised; the results are the stored values, dequantized."""
        n_new = new.size(3)
        values, scales = quantize_int8(new)
        kept, steps = self.storage[layer], self.scales[layer]
        kept.narrow(3, self.length, n_new).copy_(values)
        steps.narrow(3, self.length, n_new).copy_(scales)
        n_all = self.length + n_new
        wide = kept.narrow(3, 0, n_all).to(self._dtype) * steps.narrow(3, 0, n_all).to(self._dtype)
        return wide[0], wide[1]

    @property
    def nbytes(self) -> int:
        """2 x L x B x K x capacity x (h + 4)."""
        return self.storage.nbytes + self.scales.nbytes

    @property
    def used_bytes(self) -> int:
        """Bytes of the tokens held."""
        return self.nbytes // self.capacity * self.length


KeysValues = KVCache | WindowCache | LatentCache | Int8Cache
"""Caches with one `Store` per layer, which a compiled step can read and write."""


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 values, float32 scales) over the last dimension; x is about values x scales, within half a scale."""
    wide = x.float()
    scales = (wide.abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scales).round_().to(torch.int8), scales


def _padding(padding: Sequence[int] | None, n_rows: int, device: torch.device | str) -> Tensor | None:
    if padding is None or not any(padding):
        return None
    if len(padding) != n_rows or min(padding) < 0:
        raise CacheError(f"padding {list(padding)} does not fit {n_rows} rows; give one count of at least 0 per row")
    return torch.tensor(list(padding), dtype=torch.int64, device=device)
