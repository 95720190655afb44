"""The KV cache: exact bytes, views not copies, one length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import CacheError, OptionError, OutOfMemory
from engine.model.cache import common_prefix, reuse_prefix
from engine.model.cache_choice import cache_bytes, make_cache
from engine.model.cache_kinds import Int8Cache, KVCache, LatentCache, WindowCache, quantize_int8
from tests.engine.models import VARIANTS, decoder, llama_config

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


# --- other caches -----------------------------------------------------------------------------------------


def test_a_window_cache_allocates_the_window_only() -> None:
    config = llama_config(n_layers=3, sliding_window=5, sliding_layers=(True, False, True))
    cache = WindowCache(config, 40, batch_size=2, dtype=torch.float64)
    token_bytes = 2 * 2 * 2 * 6 * 8
    assert (
        cache.nbytes
        == (5 + 40 + 5) * token_bytes
        == cache_bytes(config, 40, batch_size=2, dtype=torch.float64, kind="window")
    )
    cache.advance(3)
    assert cache.used_bytes == 3 * 3 * token_bytes
    cache.advance(20)
    assert cache.used_bytes == (5 + 23 + 5) * token_bytes
    assert WindowCache(config, 4, dtype=torch.float64).nbytes == 3 * 4 * token_bytes // 2


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), window=st.integers(1, 6))
def test_a_ring_returns_the_window_of_every_query(sizes: list[int], window: int) -> None:
    """Whatever the chunks: each key with its position, all that any new query may see, newest included."""
    total = sum(sizes)
    cache = WindowCache(llama_config(n_layers=1, sliding_window=window), total)
    values = torch.arange(total).float().view(1, 1, 1, total, 1).expand(2, 1, 2, total, 6)
    for piece in torch.split(values, sizes, dim=3):
        n_new, past = piece.size(3), cache.length
        positions = cache.key_positions(n_new, window)
        keys, held = cache.append(0, piece)
        assert torch.equal(keys[0, 0, :, 0], positions.float())
        assert torch.equal(keys, held)
        assert set(range(max(0, past - window + 1), past + n_new)) <= set(positions.tolist()) or n_new == 1
        if n_new == 1:
            assert set(positions.tolist()) == set(range(max(0, past + 1 - window), past + 1))
        cache.advance(n_new)


def test_a_turned_ring_forgets_all_or_nothing() -> None:
    cache = WindowCache(llama_config(sliding_window=5), 20)
    cache.advance(5)
    assert cache.truncate(3) == cache.length == 3
    cache.advance(9)
    assert cache.truncate(12) == 12
    assert cache.truncate(11) == cache.length == 0


def test_a_latent_cache_keeps_one_vector_a_token() -> None:
    config = llama_config(**VARIANTS["latent"])
    cache = make_cache(config, 7, batch_size=3, dtype=torch.bfloat16)
    assert isinstance(cache, LatentCache)
    assert cache.nbytes == 2 * 3 * 7 * (8 + 4) * 2 == cache_bytes(config, 7, batch_size=3, dtype=torch.bfloat16)
    new = torch.randn(3, 2, 12).bfloat16()
    keys, values = cache.append(1, new)
    cache.advance(2)
    assert torch.equal(keys, new[:, None])
    assert torch.equal(values, new[:, None, :, :8])
    assert cache.used_bytes == cache.nbytes // 7 * 2
    with pytest.raises(CacheError, match="keeps keys and values"):
        LatentCache(llama_config(), 7)


def test_kinds_are_checked() -> None:
    with pytest.raises(OptionError, match='cache "fp4" is not known; use full, window, int8'):
        make_cache(llama_config(), 3, kind="fp4")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="int8 is not supported for latent"):
        make_cache(llama_config(**VARIANTS["latent"]), 3, kind="int8")


@given(seed=st.integers(0, 99), spread=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]))
def test_int8_is_within_half_a_step(seed: int, spread: float) -> None:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed)) * spread
    values, scales = quantize_int8(x)
    largest = x.abs().amax(-1, keepdim=True)
    assert values.abs().max() == 127
    assert ((values * scales - x).abs() <= largest / 254 * (1 + 1e-5)).all()


def test_int8_of_nothing_is_nothing() -> None:
    values, scales = quantize_int8(torch.zeros(2, 4))
    assert not values.any()
    assert scales.isfinite().all()


def test_an_int8_cache_gives_nearly_the_same_logits() -> None:
    """Near those of the full cache; the loss is there, and small."""
    model = decoder("llama", dtype=torch.float32)
    ids = torch.randint(29, (2, 30), generator=torch.Generator().manual_seed(0))
    full, small = model.new_cache(30, 2), model.new_cache(30, 2, kind="int8")
    assert isinstance(small, Int8Cache)
    pieces = torch.split(ids, [20, *[1] * 10], dim=1)
    exact = torch.cat([model.forward(piece, full) for piece in pieces], 1)
    rounded = torch.cat([model.forward(piece, small) for piece in pieces], 1)
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-2
    assert small.nbytes == 2 * 2 * 2 * 2 * 30 * (6 + 4)


# --- prefixes ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_the_common_prefix(one: list[int], other: list[int]) -> None:
    n = common_prefix(one, other)
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]


@pytest.mark.parametrize("variant", ["llama", "latent", "mixed"])
@pytest.mark.parametrize("kind", ["full", "window"])
def test_a_second_turn_runs_only_its_new_tokens(variant: str, kind: str) -> None:
    model = decoder(variant)
    first = [3, 1, 4, 1, 5, 9, 2, 6]
    second = [*first[:6], 7, 7, 8]
    cache = model.new_cache(20, kind=kind)  # type: ignore[arg-type]
    model.forward(torch.tensor([first]), cache)
    kept = reuse_prefix(cache, first, second)
    ring = kind == "window" and model.config.sliding_window is not None
    assert kept == cache.length == (0 if ring else 6)  # 8 tokens have turned a ring of 5: all is run again
    logits = model.forward(torch.tensor([second[kept:]]), cache, last_only=True)
    torch.testing.assert_close(logits, model.forward(torch.tensor([second]), last_only=True), rtol=0, atol=1e-12)


def test_the_last_token_of_a_known_prompt_is_run_again() -> None:
    model = decoder()
    cache = model.new_cache(9)
    model.forward(torch.tensor([[1, 2, 3]]), cache)
    assert reuse_prefix(cache, [1, 2, 3], [1, 2, 3]) == 2
    assert reuse_prefix(cache, [1, 2, 3], [9]) == 0


@pytest.mark.parametrize("padding", [[1], [0, -1]])
def test_padding_must_fit_the_rows(padding: list[int]) -> None:
    with pytest.raises(CacheError, match="does not fit 2 rows"):
        KVCache(llama_config(), 4, batch_size=2, padding=padding)
