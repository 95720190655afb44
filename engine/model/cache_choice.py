"""Which cache a model gets, and how many bytes it takes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch

from engine.errors import CacheError, OptionError
from engine.model.cache import Cache
from engine.model.cache_kinds import Int8Cache, KeysValues, KVCache, LatentCache, WindowCache
from engine.model.config import ModelConfig
from engine.model.states import StateCache
from engine.records import CacheKind

_SCALE_BYTES = 4  # one float32 scale per head and token, for K and for V


def make_cache(
    config: ModelConfig,
    capacity: int,
    *,
    kind: CacheKind = "full",
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    padding: Sequence[int] | None = None,
) -> Cache:
    """A cache of the given kind for a model. Raises OptionError if the model cannot use that kind."""

    def make(of: ModelConfig) -> Cache:
        cache = _class_for(of, kind)
        return cache(of, capacity, batch_size=batch_size, dtype=dtype, device=device, padding=padding)

    if config.recurrent is None:
        return make(config)
    return StateCache(config, make, attention_only=attention_only(config))


def attention_only(config: ModelConfig) -> ModelConfig:
    """The config of only the layers with attention: those that have keys and values to cache."""
    kept = [i for i, recurrent in enumerate(config.recurrent_layers) if not recurrent]
    if not kept:
        raise CacheError("no layer of this model has attention, so there are no keys and values to cache")
    slides = tuple(config.sliding_layers[i] for i in kept) if config.sliding_layers else ()
    return replace(
        config,
        n_layers=len(kept),
        sliding_layers=slides,
        rope_layers=(),
        expert_layers=(),
        recurrent=None,
        recurrent_layers=(),
    )


def _class_for(config: ModelConfig, kind: CacheKind) -> type[KeysValues]:
    if kind not in get_args(CacheKind):
        raise OptionError("cache", f'cache "{kind}" is not known; use {", ".join(get_args(CacheKind))}')
    if config.latent is not None:
        if kind == "int8":
            raise OptionError(
                "cache", "cache int8 is not supported for latent attention, whose cache is already compressed"
            )
        return LatentCache
    classes: dict[CacheKind, type[KeysValues]] = {"full": KVCache, "window": WindowCache, "int8": Int8Cache}
    return classes[kind]


def cache_bytes(
    config: ModelConfig, capacity: int, *, batch_size: int = 1, dtype: torch.dtype, kind: CacheKind = "full"
) -> int:
    """Bytes a cache would take, without allocating it: 2 L B K S h b, or the formula of its class."""
    if config.recurrent is not None:
        config = attention_only(config)
    chosen = _class_for(config, kind)
    if chosen is LatentCache:
        assert config.latent is not None
        return config.n_layers * batch_size * capacity * config.latent.width * dtype.itemsize
    per_token = 2 * batch_size * config.n_kv_heads
    if chosen is Int8Cache:
        return per_token * config.n_layers * capacity * (config.head_dim + _SCALE_BYTES)
    tokens = config.n_layers * capacity
    if chosen is WindowCache:
        tokens = sum(min(capacity, layer.window or capacity) for layer in config.layers())
    return per_token * config.head_dim * tokens * dtype.itemsize
