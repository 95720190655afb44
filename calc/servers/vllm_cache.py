"""vLLM's paged cache as formulas: page sizes, groups of layers, blocks, what the log prints.

Source: vllm/v1/kv_cache_interface.py and vllm/v1/core/kv_cache_utils.py; the tests compare with start-up logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from calc.errors import SpecError
from calc.explain.terms import maximum
from calc.servers.cache_layers import CHUNKED, FULL, LATENT, RECURRENT, SLIDING, CacheLayers
from calc.servers.records import CacheGroup

GROUP_SLACK = Fraction(3, 2)
"""Layer kinds whose counts differ by less than this factor form groups of the larger count, padded."""
SCALE_GROUP = 128
"""fp8 elements of a sparse latent row that share a 4-byte scale."""
INDEX_ROW_BYTES = 132
"""An indexer's row in vLLM: 128 fp8 elements and a 4-byte scale."""
BLOCK_INDEX_BYTES = 2
"""Bytes per element of the key of an indexer that selects blocks: 16 bits, whatever the cache format (MiniMax-M3)."""


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def kv_heads_per_rank(*, n_kv_heads: Any, tp: Any) -> Any:
    """Whole KV heads per rank; heads are repeated if there are more ranks than heads."""
    return maximum(n_kv_heads // tp, 1)


def attention_token_bytes(*, heads_per_rank: Any, key_dim: Any, value_dim: Any, kv_element_bytes: Any) -> Any:
    """Bytes per token and layer on a rank.

    >>> attention_token_bytes(heads_per_rank=8, key_dim=128, value_dim=128, kv_element_bytes=2)
    4096
    """
    return heads_per_rank * (key_dim + value_dim) * kv_element_bytes


def recurrent_page_bytes(
    *,
    state_elements: Any,
    conv_channels: Any,
    conv_rows: Any,
    state_element_bytes: Any,
    conv_element_bytes: Any,
    tp: Any,
) -> Any:
    """State bytes per sequence and layer on a rank; `conv_rows` is kernel - 1 + speculative tokens.

    >>> recurrent_page_bytes(state_elements=48 * 128 * 128, conv_channels=10240, conv_rows=3, state_element_bytes=4,
    ...                      conv_element_bytes=2, tp=4)
    801792
    """
    return (state_elements * state_element_bytes + conv_channels * conv_rows * conv_element_bytes) // tp


def aligned_block_size(*, page_bytes: int, token_bytes: int, multiple: int = 16) -> int:
    """Tokens per attention block, so that its page holds a state ("Setting attention block size to …").

    >>> aligned_block_size(page_bytes=801_792, token_bytes=1024)
    784
    """
    return multiple * cdiv(page_bytes, multiple * token_bytes)


def request_tokens(kind: str, window: int | None, *, max_model_len: int, in_flight_tokens: int) -> int:
    """Tokens of a request that a layer of this kind may hold at once."""
    if window is None or kind in (FULL, LATENT):
        return max_model_len
    cached = window + in_flight_tokens - (1 if kind == SLIDING else 0)
    return min(cached, max_model_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSpec:
    """Layers of one kind on a rank: `page_bytes` per block and layer; `dcp` ranks share a context that can be
    divided."""

    kind: str
    layers: int
    page_bytes: int
    block_tokens: int
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """How a rank divides its pool: `block_bytes` of the pool per block, and the groups that take blocks."""

    block_size: int
    block_bytes: int
    groups: tuple[CacheGroup, ...]
    padding_layers: int

    @property
    def blocks_per_request(self) -> int:
        """Blocks per full-length request, over all groups."""
        return sum(group.blocks_per_request for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSetting:
    """What the layout depends on besides the layers. `in_flight_tokens`: tokens of the steps in flight."""

    tp: int
    dcp: int
    block_size: int
    kv_element_bytes: int | Fraction
    max_model_len: int
    in_flight_tokens: int
    state_element_bytes: int
    speculative_tokens: int
    states_cached: bool
    hybrid: bool
    scaled_rows: bool = False


def latent_row_bytes(layer: CacheLayers, setting: CacheSetting) -> int:
    """Bytes of a latent row; for ``fp8_ds_mla``, 512 in fp8, 4 scales of 4 bytes and 64 rotary elements in 16 bits:
    656."""
    if layer.sparse and setting.scaled_rows:
        latent = layer.key_dim - layer.rope_dim
        return latent + 4 * cdiv(latent, SCALE_GROUP) + 2 * layer.rope_dim
    return ceil(layer.key_dim * setting.kv_element_bytes)


def index_bytes(layer: CacheLayers) -> int:
    """Bytes of an index key in fp8 and its scales."""
    return INDEX_ROW_BYTES * layer.index_elements // 128


def token_bytes(layer: CacheLayers, setting: CacheSetting) -> int:
    """Bytes per token and layer on a rank. Raises SpecError if the KV heads cannot be divided this way."""
    if layer.kind == LATENT:
        return latent_row_bytes(layer, setting) + index_bytes(layer)
    own = heads_bytes(layer, tp=setting.tp, kv_element_bytes=setting.kv_element_bytes)
    return own + layer.index_elements * BLOCK_INDEX_BYTES


def heads_bytes(layer: CacheLayers, *, tp: int, kv_element_bytes: int | Fraction) -> int:
    """K and V of a token on a rank of `tp`. Raises SpecError if the KV heads cannot be divided this way."""
    if layer.n_kv_heads % tp and tp % layer.n_kv_heads:
        raise SpecError("tp", f"{layer.n_kv_heads:,} KV heads are not divisible by {tp:,} and do not repeat evenly")
    each: int | Fraction = attention_token_bytes(
        heads_per_rank=kv_heads_per_rank(n_kv_heads=layer.n_kv_heads, tp=tp),
        key_dim=layer.key_dim,
        value_dim=layer.value_dim,
        kv_element_bytes=kv_element_bytes,
    )
    return ceil(each)


def state_bytes(layer: CacheLayers, setting: CacheSetting) -> int:
    """State bytes per sequence and layer on a rank."""
    return int(
        recurrent_page_bytes(
            state_elements=layer.state_elements,
            conv_channels=layer.conv_channels,
            conv_rows=layer.conv_kernel - 1 + setting.speculative_tokens,
            state_element_bytes=setting.state_element_bytes,
            conv_element_bytes=2,
            tp=setting.tp,
        )
    )


def kv_specs(layers: Sequence[CacheLayers], setting: CacheSetting) -> tuple[KvSpec, ...]:
    """Page and block of every kind, with pages made equal (states padded, blocks of smaller rows lengthened)."""
    caching = [layer for layer in layers if layer.kind != RECURRENT]
    states = [layer for layer in layers if layer.kind == RECURRENT]
    if states and not caching:  # a block is a sequence's state
        page = max(state_bytes(layer, setting) for layer in states)
        return tuple(
            KvSpec(kind=RECURRENT, layers=layer.layers, page_bytes=page, block_tokens=setting.max_model_len)
            for layer in states
        )
    block = setting.block_size
    if states:
        smallest = min(token_bytes(layer, setting) for layer in caching)
        page = max(state_bytes(layer, setting) for layer in states)
        block = max(block, aligned_block_size(page_bytes=page, token_bytes=smallest))
    pages = {layer: token_bytes(layer, setting) * block for layer in caching}
    largest = max(pages.values())
    return tuple(_kv_spec(layer, pages=pages, largest=largest, block=block, hybrid=setting.hybrid) for layer in layers)


def _kv_spec(layer: CacheLayers, *, pages: dict[CacheLayers, int], largest: int, block: int, hybrid: bool) -> KvSpec:
    if layer.kind == RECURRENT:
        return KvSpec(kind=RECURRENT, layers=layer.layers, page_bytes=largest, block_tokens=block)
    ratio = largest // pages[layer] if largest % pages[layer] == 0 and _unified(pages) else 1
    windowed = hybrid and layer.window is not None
    return KvSpec(
        kind=layer.kind if windowed or layer.kind == LATENT else FULL,
        layers=layer.layers,
        page_bytes=pages[layer] * ratio,
        block_tokens=block * ratio,
        window=layer.window if windowed else None,
    )


def _unified(pages: dict[CacheLayers, int]) -> bool:
    """Kinds that keep the same (all full, all latent) share a group, whatever their page sizes."""
    return len({(layer.kind == LATENT, layer.window) for layer in pages}) > 1


def group_size(counts: Sequence[int]) -> int:
    """Layers per group, from the number of layers of each kind.

    >>> group_size([5, 29]), group_size([12, 36]), group_size([10, 12])
    (5, 12, 12)
    """
    return max(counts) if max(counts) < GROUP_SLACK * min(counts) else min(counts)


def cache_shape(layers: Sequence[CacheLayers], setting: CacheSetting) -> CacheShape:
    """Groups and bytes per block. If all layers are of one kind, they form one group; otherwise groups are of equal
    size."""
    specs = _merged(kv_specs(layers, setting))
    if len({(spec.kind, spec.window) for spec in specs}) == 1:
        first = specs[0]
        layers_all = sum(spec.layers for spec in specs)
        block_bytes = sum(spec.layers * spec.page_bytes for spec in specs)
        group = _group(first, layers_all, setting)
        return CacheShape(
            block_size=first.block_tokens,
            block_bytes=block_bytes,
            groups=(group,),
            padding_layers=0,
        )
    if len({spec.page_bytes for spec in specs}) > 1:
        raise SpecError("layers", "the pages of this model's layers cannot be made equal: vLLM also refuses this model")
    size = group_size([spec.layers for spec in specs])
    groups = [_group(spec, size, setting) for spec in specs for _ in range(cdiv(spec.layers, size))]
    return CacheShape(
        block_size=min(spec.block_tokens for spec in specs),
        block_bytes=size * specs[0].page_bytes,
        groups=tuple(groups),
        padding_layers=size * len(groups) - sum(spec.layers for spec in specs),
    )


def _merged(specs: Sequence[KvSpec]) -> list[KvSpec]:
    """Merges specs that differ only in their number of layers."""
    counts: dict[tuple[str, int, int, int | None], int] = {}
    for spec in specs:
        key = (spec.kind, spec.page_bytes, spec.block_tokens, spec.window)
        counts[key] = counts.get(key, 0) + spec.layers
    return [
        KvSpec(kind=kind, layers=n, page_bytes=page, block_tokens=block, window=window)
        for (kind, page, block, window), n in counts.items()
    ]


def _group(spec: KvSpec, layers: int, setting: CacheSetting) -> CacheGroup:
    return CacheGroup(
        kind=spec.kind, layers=layers, block_tokens=spec.block_tokens, blocks_per_request=request_blocks(spec, setting)
    )


def request_blocks(spec: KvSpec, setting: CacheSetting) -> int:
    """Blocks per full-length request in one group.

    A window can start anywhere in a block and needs one more block. A state is one block, plus one per draft token.
    """
    if spec.kind == RECURRENT:
        return 1 + setting.speculative_tokens + (1 if setting.states_cached else 0)
    tokens = request_tokens(
        spec.kind,
        spec.window,
        max_model_len=setting.max_model_len,
        in_flight_tokens=setting.in_flight_tokens,
    )
    if spec.kind == SLIDING:
        return cdiv(tokens, spec.block_tokens) + 1
    if spec.kind == CHUNKED:
        return cdiv(tokens, spec.block_tokens)
    return cdiv(cdiv(tokens, setting.dcp), spec.block_tokens)


def printed_tokens(shape: CacheShape, blocks: int, *, dcp: int, max_model_len: int, from_concurrency: bool) -> int:
    """``GPU KV cache size: … tokens`` as the version prints it."""
    if from_concurrency:
        return blocks * max_model_len // shape.blocks_per_request
    return blocks // len(shape.groups) * shape.block_size * dcp
