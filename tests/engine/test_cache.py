"""The KV cache: exact bytes, views not copies, one length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.cache import KVCache, cache_bytes
from engine.errors import CacheError, OutOfMemory
from tests.engine.models import llama_config

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@given(
    n_layers=st.integers(1, 3),
    n_kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 8]),
    capacity=st.integers(1, 40),
    rows=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
)
def test_bytes_are_the_formula(
    n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, rows: int, dtype: torch.dtype
) -> None:
    config = llama_config(n_layers=n_layers, n_heads=n_kv_heads, n_kv_heads=n_kv_heads, head_dim=head_dim)
    cache = KVCache(config, capacity, batch_size=rows, dtype=dtype)
    element_bytes = torch.empty((), dtype=dtype).element_size()
    expected = 2 * n_layers * rows * n_kv_heads * capacity * head_dim * element_bytes
    assert cache.nbytes == expected == cache.storage.untyped_storage().nbytes()
    assert cache_bytes(config, capacity, batch_size=rows, dtype=dtype) == expected
    assert cache.bytes_per_token * capacity == expected


def test_llama_3_8b_at_8192_tokens_takes_one_gib() -> None:
    config = llama_config(n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128)
    assert KVCache(config, 8192, dtype=torch.bfloat16, device="meta").nbytes == 2**30


def test_append_returns_views_of_everything_so_far() -> None:
    cache = KVCache(llama_config(), 6, batch_size=2)
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.randn(2, 2, 2, n, 6, generator=generator) for n in (3, 1, 2)]
    for piece in pieces:
        for layer in range(2):
            keys, values = cache.append(layer, piece + layer)
        cache.advance(piece.size(3))
    whole = torch.cat(pieces, 3)
    assert torch.equal(keys, whole[0] + 1)
    assert torch.equal(values, whole[1] + 1)
    assert torch.equal(cache.storage[0], whole)
    assert keys.untyped_storage().data_ptr() == cache.storage.untyped_storage().data_ptr()
    assert (cache.length, cache.used_bytes) == (6, cache.nbytes)


def test_length_moves_only_by_advance() -> None:
    cache = KVCache(llama_config(), 4)
    cache.append(0, torch.ones(2, 1, 2, 3, 6))
    assert (cache.length, cache.used_bytes) == (0, 0)
    cache.advance(3)
    assert (cache.length, cache.used_bytes) == (3, 3 * 2 * 2 * 2 * 6 * 4)
    cache.reset()
    assert cache.length == 0


def test_room_is_checked_with_numbers() -> None:
    cache = KVCache(llama_config(), 4, batch_size=2)
    cache.require(2, 4)
    with pytest.raises(CacheError, match="0 of 4 tokens; 5 more"):
        cache.require(2, 5)
    with pytest.raises(CacheError, match="2 rows, not 1"):
        cache.require(1, 1)


@pytest.mark.parametrize(("capacity", "rows"), [(0, 1), (-3, 1), (4, 0)])
def test_an_empty_cache_is_refused(capacity: int, rows: int) -> None:
    with pytest.raises(CacheError, match="at least 1"):
        KVCache(llama_config(), capacity, batch_size=rows)


def test_a_cache_beyond_memory_is_an_answer_not_a_crash() -> None:
    with pytest.raises(OutOfMemory, match=r"a KV cache of .* bytes .* does not fit") as caught:
        KVCache(llama_config(), 2**50)
    assert caught.value.kind == "memory"
