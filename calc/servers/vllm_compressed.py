"""vLLM's pool for compressed attention (DeepSeek-V4): rows, index keys and states in groups that share blocks.

Sources: models/deepseek_v4/attention.py and compressor.py, sparse_swa.py, and the grouping of layers in
v1/core/kv_cache_utils.py (0.20 to 0.28) and v1/core/kv_cache_planning.py (0.33). Compared with a log of 0.22: 30,000
tokens of V4-Flash need 6.66 GiB, and 5.44 GiB hold 13,528 tokens (vllm-project/vllm#44376).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calc.errors import SpecError
from calc.servers.cache_layers import COMPRESSED, FULL, SLIDING, CacheLayers
from calc.servers.records import CacheGroup
from calc.servers.versions import Version
from calc.servers.vllm_cache import CacheSetting, CacheShape, cdiv, index_bytes

PACKED: Version = (0, 29)
"""Since then, a block is as wide as the widest group; before, as one slot per page size times the most layers."""
ROW_ELEMENTS, ROW_BYTES = 512, 584
"""A row in FlashMLA: 448 elements in fp8, 64 rotary elements in 16 bits, 8 bytes of scales."""
PAGE_MULTIPLE = 576
ROWS_BLOCK, WINDOW_BLOCK = 256, 64
STATE_BLOCK = {4: 4, 128: 8}
"""Tokens per block of states, by tokens per row: as many as fit the page of rows."""
STATE_ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Pages:
    """Layers that share a block table: pages of each size per block of `tokens`. No window: every token is kept."""

    tokens: int
    window: int | None
    layers: tuple[tuple[int, int], ...]

    @property
    def most(self) -> int:
        """Layers of the most common page size."""
        return max(n for _, n in self.layers)

    @property
    def balanced(self) -> bool:
        """Whether all page sizes have the same number of layers."""
        return len({n for _, n in self.layers}) == 1

    def bytes_in(self, groups: int) -> int:
        """Bytes per block of the largest of `groups` equal parts."""
        return sum(cdiv(n, groups) * size for size, n in self.layers)


def compressed_shape(cached: Sequence[CacheLayers], setting: CacheSetting, version: Version) -> CacheShape:
    """How a rank divides its pool. Raises SpecError for rows that vLLM's kernels do not support."""
    if any(layer.kind not in (COMPRESSED, SLIDING) or layer.key_dim != ROW_ELEMENTS for layer in cached):
        raise SpecError("layers", f"vLLM only supports compressed attention in rows of {ROW_ELEMENTS} elements")
    tables = _tables(cached)
    parts, block_bytes = _packed(tables) if version >= PACKED else _slotted(tables)
    groups = [
        CacheGroup(
            kind=FULL if table.window is None else SLIDING,
            layers=sum(cdiv(n, count) for _, n in table.layers),
            block_tokens=table.tokens,
            blocks_per_request=_request_blocks(table, setting),
        )
        for table, count in zip(tables, parts, strict=True)
        for _ in range(count)
    ]
    return CacheShape(
        block_size=min(table.tokens for table in tables),
        block_bytes=block_bytes,
        groups=tuple(groups),
        padding_layers=0,
    )


def _tables(cached: Sequence[CacheLayers]) -> list[Pages]:
    """Rows and index keys; then windows and states by their block and window."""
    rows = [layer for layer in cached if layer.kind == COMPRESSED]
    sizes: dict[tuple[int, int | None], dict[int, int]] = {}
    for layer in rows:
        _add(sizes, (ROWS_BLOCK, None), ROWS_BLOCK // layer.ratio * ROW_BYTES, layer.layers)
        if layer.index_elements:
            _add(sizes, (ROWS_BLOCK, None), ROWS_BLOCK // layer.ratio * index_bytes(layer), layer.layers)
    for layer in cached:
        if layer.kind == SLIDING:
            _add(sizes, (WINDOW_BLOCK, layer.window), WINDOW_BLOCK * ROW_BYTES, layer.layers)
    for layer in rows:
        groups = 2 if layer.overlap else 1
        block = STATE_BLOCK.get(layer.ratio)
        if block is None:
            raise SpecError("layers", f"vLLM has no rows of {layer.ratio:,} tokens: it has rows of 4 and of 128")
        for width in (layer.key_dim, layer.index_elements):
            if width:
                page = block * 2 * groups * width * STATE_ELEMENT_BYTES
                _add(sizes, (block, groups * layer.ratio), page, layer.layers)
    return [Pages(tokens, window, tuple(pages.items())) for (tokens, window), pages in sizes.items()]


def _add(sizes: dict[tuple[int, int | None], dict[int, int]], table: tuple[int, int | None], page: int, n: int) -> None:
    pages = sizes.setdefault(table, {})
    size = cdiv(page, PAGE_MULTIPLE) * PAGE_MULTIPLE
    pages[size] = pages.get(size, 0) + n


def _request_blocks(table: Pages, setting: CacheSetting) -> int:
    if table.window is None:
        return cdiv(setting.max_model_len, table.tokens)
    return cdiv(min(table.window - 1 + setting.in_flight_tokens, setting.max_model_len), table.tokens) + 1


def _slotted(tables: Sequence[Pages]) -> tuple[list[int], int]:
    """Parts of every table and the bytes per block, with one slot per page size of the rows for each layer."""
    rows = tables[0].most
    slots = common_part([table.most for table in tables], least=rows)
    parts = [1, *(cdiv(table.most, slots) for table in tables[1:])]
    most = max(cdiv(table.most, count) for table, count in zip(tables, parts, strict=True))
    return parts, most * sum(size for size, _ in tables[0].layers)


def _packed(tables: Sequence[Pages]) -> tuple[list[int], int]:
    """Parts of every table and the bytes per block, with pages side by side."""
    mixed = [table.most for table in tables if table.balanced and len(table.layers) > 1]
    each = common_part([table.most for table in tables if table.balanced], least=max(mixed)) if mixed else None
    parts = [cdiv(table.most, each) if each and table.balanced else 1 for table in tables]
    return parts, max(table.bytes_in(count) for table, count in zip(tables, parts, strict=True))


def common_part(counts: Sequence[int], *, least: int) -> int:
    """The size of at least `least` with the least padding for `counts`; the larger of two equal ones.

    >>> common_part([21, 43, 21, 20], least=21)
    22
    """
    return min(range(least, max(counts) + 1), key=lambda size: (sum(-n % size for n in counts), -size))
