"""The layers of a model as a server's cache sees them: what each keeps per token or per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from calc.model.spec import ModelSpec

if TYPE_CHECKING:
    from calc.model.layers import Attention, Compressor, Latent, Mixer

FULL, SLIDING, CHUNKED, LATENT, RECURRENT = "full", "sliding", "chunked", "latent", "recurrent"
COMPRESSED = "compressed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayers:
    """`layers` layers that keep the same.

    Per token: n_kv_heads x (key_dim + value_dim) elements (LATENT: one row of key_dim on every rank) and the
    `index_elements` of an indexer (plus `index_values`, which llama.cpp allocates). The last `rope_dim` elements of a
    latent row are rotary; without a latent cache, its `latent_heads` keep keys of `latent_head_dim`. `sparse`: an
    indexer selects what is read. COMPRESSED: a row of key_dim and its index key per `ratio` tokens, made from them
    (with `overlap`, also from the previous ones). Per sequence: `state_elements` and the last inputs of a convolution
    over `conv_channels`; `mixer` names the recurrence, because state types differ.
    """

    kind: str
    layers: int
    n_kv_heads: int = 1
    key_dim: int = 0
    value_dim: int = 0
    window: int | None = None
    index_elements: int = 0
    index_values: int = 0
    state_elements: int = 0
    conv_channels: int = 0
    conv_kernel: int = 1
    mixer: str = "attention"
    latent_heads: int = 0
    latent_head_dim: int = 0
    rope_dim: int = 0
    sparse: bool = False
    ratio: int = 1
    overlap: bool = False


def cache_layers(model: ModelSpec, first: int = 0, last: int | None = None) -> tuple[CacheLayers, ...]:
    """Layers `first` to `last` (excluded) by what they keep, in order of first appearance."""
    layers = model.layers[first:last]
    cached = [_of_mixer(mixer) for layer in layers for mixer in layer.mixers]
    return _counted(
        sorted(cached, key=lambda each: each is not None and each.kind == SLIDING) if model.uniform else cached
    )


PADDED_HEAD = 256
"""Head dimension to which vLLM padded keys and values of latent attention before it cached the latent."""


def expanded(cached: tuple[CacheLayers, ...]) -> tuple[CacheLayers, ...]:
    """`cached` with keys and values of every head in place of the latent, as servers without a latent cache."""
    return tuple(_with_heads(layer) if layer.kind == LATENT else layer for layer in cached)


def _with_heads(layer: CacheLayers) -> CacheLayers:
    dim = max(PADDED_HEAD, layer.latent_head_dim)
    return CacheLayers(kind=FULL, layers=layer.layers, n_kv_heads=layer.latent_heads, key_dim=dim, value_dim=dim)


def _counted(layers: Sequence[CacheLayers | None]) -> tuple[CacheLayers, ...]:
    counts: dict[CacheLayers, int] = {}
    for layer in layers:
        if layer is not None:
            counts[layer] = counts.get(layer, 0) + 1
    return tuple(replace(layer, layers=n) for layer, n in counts.items())


def _of_mixer(mixer: Mixer) -> CacheLayers | None:
    """What one mixer keeps; None if it reads another layer's cache."""
    from calc.model.layers import Attention, Compressor, ExpandedLatent, Latent, WindowRow

    if isinstance(mixer, Attention):
        return _heads(mixer) if mixer.keys else None
    if isinstance(mixer, ExpandedLatent):
        key_dim = mixer.nope_dim + mixer.rope_dim
        return CacheLayers(kind=FULL, layers=1, n_kv_heads=mixer.n_heads, key_dim=key_dim, value_dim=mixer.value_dim)
    if isinstance(mixer, Latent):
        return _latent(mixer)
    if isinstance(mixer, WindowRow):
        return CacheLayers(kind=SLIDING, layers=1, key_dim=mixer.head_dim, window=mixer.window, mixer=mixer.kind)
    return _rows(mixer) if isinstance(mixer, Compressor) else _recurrent(mixer)


def _heads(mixer: Attention) -> CacheLayers:
    """K and V of all heads, and the key of an indexer that selects blocks."""
    return CacheLayers(
        kind=FULL if mixer.window is None else CHUNKED if mixer.chunked else SLIDING,
        layers=1,
        n_kv_heads=mixer.n_kv_heads,
        key_dim=mixer.head_dim,
        value_dim=mixer.value_dim,
        window=mixer.window,
        index_elements=mixer.index_dim,
    )


def _latent(mixer: Latent) -> CacheLayers:
    """One row for all heads, and the key of an indexer."""
    return CacheLayers(
        kind=LATENT,
        layers=1,
        key_dim=mixer.cache_elements,
        window=mixer.window,
        index_elements=mixer.index_elements,
        mixer="latent",
        latent_heads=mixer.n_heads,
        latent_head_dim=mixer.nope_dim + mixer.rope_dim,
        rope_dim=mixer.rope_dim,
        sparse=bool(mixer.index_heads or mixer.index_topk),
    )


def _rows(mixer: Compressor) -> CacheLayers:
    """A row for several tokens, its index key, and the tokens that have no row yet."""
    return CacheLayers(
        kind=COMPRESSED,
        layers=1,
        key_dim=mixer.head_dim,
        index_elements=mixer.index_dim if mixer.index_heads else 0,
        state_elements=mixer.state_elements,
        mixer=mixer.kind,
        ratio=mixer.ratio,
        overlap=mixer.overlap,
    )


def _recurrent(mixer: Any) -> CacheLayers:
    """A state of heads x head dimension x state (none for a short convolution), and the inputs of a convolution."""
    from calc.model.layers import Stated

    channels = mixer.conv_channels
    state = mixer.state_elements - channels * mixer.kernel
    return CacheLayers(
        kind=RECURRENT,
        layers=1,
        state_elements=state,
        conv_channels=channels,
        conv_kernel=mixer.kernel,
        mixer=mixer.label if isinstance(mixer, Stated) else mixer.kind,
    )
