"""llama.cpp's cache: cells for all slots, allocated at once, layer by layer.

llama-kv-cache.cpp (contiguous, n_ctx cells for all slots), llama-kv-cache-iswa.cpp (window x slots + one batch, padded
to 256), llama-memory-recurrent.cpp (one state per slot, in float32), llama-kv-cache-dsa.cpp, -msa.cpp and
llama-memory-hybrid-idx.cpp (a cache for the keys of indexers), llama-kv-cache-dsv4.cpp (compressed rows, every slot
with its own cells). Compared with what the build of October 2026 allocates for every architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

from calc.model.latent import Latent
from calc.model.parts import LayerSpec
from calc.model.spec import ModelSpec
from calc.servers.cache_layers import COMPRESSED, FULL, LATENT, RECURRENT, CacheLayers, cache_layers
from calc.servers.llamacpp.builds import LATENT_CACHE, WINDOW_CACHE

CELL_PADDING = 256
STATE_BYTES = 4
NO_WINDOW = frozenset(
    ("ministral", "mistral", "mixtral", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2")
)
"""Classes whose window llama.cpp ignores: their layers cache the whole context."""
POOLED_ROWS = 3
"""Rows of an indexer that pools keys (GLM-5.3)."""
OWN_CELLS = "window_row"
"""Layers in which every slot has its own cells: windows of rows, beside compressed rows."""

Each = int | Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """`context` tokens for each of `slots`, in batches of `ubatch`; K and V take `key_bytes` and `value_bytes` per
    element.

    `whole_windows` (``--swa-full``): window layers cache the whole context.
    """

    context: int
    slots: int
    ubatch: int
    key_bytes: Each
    value_bytes: Each
    whole_windows: bool = False

    @property
    def cells(self) -> int:
        """Cells of a layer that keeps every token of every slot."""
        return padded(self.context * self.slots)

    @property
    def batch(self) -> int:
        """Tokens per step."""
        return min(self.ubatch, self.cells)

    def cells_of(self, cached: CacheLayers) -> int:
        """Cells per layer of this kind."""
        if cached.kind == COMPRESSED:
            return self.slots * padded(-(-padded(self.context) // cached.ratio))
        if cached.mixer == OWN_CELLS:
            return self.slots * self._own_cells(cached)
        if cached.window is None or self.whole_windows:
            return self.cells
        return window_cells(cached.window, n_seq=self.slots, n_ubatch=self.ubatch, n_ctx=self.cells)

    def _own_cells(self, cached: CacheLayers) -> int:
        whole = padded(self.context)
        if cached.window is None or self.whole_windows:
            return whole
        return window_cells(cached.window, n_seq=1, n_ubatch=self.ubatch, n_ctx=whole)


def padded(n: int) -> int:
    """Whole blocks of cells."""
    return -(-n // CELL_PADDING) * CELL_PADDING


def window_cells(window: int, *, n_seq: int, n_ubatch: int, n_ctx: int) -> int:
    """Cells of a window layer: room for all slots and one batch, padded, at most the context.

    >>> window_cells(1024, n_seq=1, n_ubatch=512, n_ctx=131_072), window_cells(4096, n_seq=2, n_ubatch=512, n_ctx=8192)
    (1536, 8192)
    """
    return min(n_ctx, padded(window * n_seq + n_ubatch))


def kept_by_layer(model: ModelSpec, build: int) -> tuple[tuple[CacheLayers, ...], ...]:
    """What each layer keeps, bottom first; nothing if it reads another layer's cache."""
    known: dict[int, tuple[CacheLayers, ...]] = {}  # equal layers are one object
    recurrent = any(mixer.state_elements for layer in model.groups for mixer in layer.mixers)
    for i, layer in enumerate(model.layers):
        if id(layer) not in known:
            cached = [_as_cached(each, model, layer, build) for each in cache_layers(model, i, i + 1)]
            known[id(layer)] = tuple(_with_index(each, layer, recurrent=recurrent) for each in cached)
    return tuple(known[id(layer)] for layer in model.layers)


def _with_index(cached: CacheLayers, layer: LayerSpec, *, recurrent: bool) -> CacheLayers:
    """`cached` with what the cache for the keys of an indexer has in addition.

    For blocks, it has one unused row of values (llama_kv_cache_msa). For a latent with pooled keys beside recurrent
    layers, it has three rows (llama_memory_hybrid_idx), as loading models with other widths shows.
    """
    if not cached.index_elements or (cached.kind == LATENT) is not recurrent:
        return cached
    if cached.kind == LATENT:
        return replace(cached, index_elements=POOLED_ROWS * cached.index_elements)
    mixer: Any = layer.mixers[0]
    return replace(cached, index_values=mixer.value_dim) if cached.kind == FULL else cached


def _as_cached(cached: CacheLayers, model: ModelSpec, layer: LayerSpec, build: int) -> CacheLayers:
    if cached.kind == LATENT and build < LATENT_CACHE:
        return _expanded(cached, layer)
    ignored = build < WINDOW_CACHE or model.model_type in NO_WINDOW
    return replace(cached, kind=FULL, window=None) if cached.window is not None and ignored else cached


def _expanded(cached: CacheLayers, layer: LayerSpec) -> CacheLayers:
    """K and V of all heads, as in builds before the latent cache."""
    mixer = next(mixer for mixer in layer.mixers if isinstance(mixer, Latent))
    return replace(
        cached,
        kind=FULL,
        n_kv_heads=mixer.n_heads,
        key_dim=mixer.nope_dim + mixer.rope_dim,
        value_dim=mixer.value_dim,
        index_elements=0,
    )


def layer_bytes(cached: CacheLayers, shape: CacheShape) -> int:
    """Bytes of `cached.layers` such layers: states are float32, an indexer's keys are stored as K."""
    state = cached.state_elements + cached.conv_channels * (cached.conv_kernel - 1)
    states = cached.layers * shape.slots * state * STATE_BYTES
    if cached.kind == RECURRENT:
        return states
    return states + cached.layers * shape.cells_of(cached) * sum(row_bytes(cached, shape))


def row_bytes(cached: CacheLayers, shape: CacheShape) -> tuple[int, int]:
    """Bytes of K and of V per cell and layer; a latent has only K."""
    keys = cached.n_kv_heads * cached.key_dim + cached.index_elements
    values = (0 if cached.kind == LATENT else cached.n_kv_heads * cached.value_dim) + cached.index_values
    return ceil(keys * shape.key_bytes), ceil(values * shape.value_bytes)
