"""Formulas of operators against loops over queries, keys and experts."""

from __future__ import annotations

from itertools import combinations, product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.step.formulas import experts_hit, keys_read, pairs
from tests.calc.strategies import QUICK


def seen(position: int, window: int | None, *, chunked: bool) -> range:
    """Positions that the causal query at `position` (from 0) sees."""
    first = 0
    if window is not None:
        first = position // window * window if chunked else max(0, position - window + 1)
    return range(first, position + 1)


@QUICK
@given(st.integers(1, 40), st.integers(1, 40), st.none() | st.integers(1, 50), st.booleans())
def test_causal_pairs_by_a_loop(n_queries: int, before: int, window: int | None, chunked: bool) -> None:
    n_keys = before + n_queries
    counted = sum(len(seen(p, window, chunked=chunked)) for p in range(before, n_keys))
    assert pairs(n_queries=n_queries, n_keys=n_keys, window=window, causal=True, chunked=chunked) == counted


@QUICK
@given(st.integers(1, 60), st.integers(0, 60), st.none() | st.integers(1, 9), st.integers(2, 9))
def test_rows_of_several_tokens_by_a_loop(n_queries: int, before: int, most: int | None, ratio: int) -> None:
    """A query sees the rows of all tokens up to its own that are complete, `most` of them."""
    n_keys = before + n_queries
    rows = [(p + 1) // ratio for p in range(before, n_keys)]
    counted = sum(n if most is None else min(n, most) for n in rows)
    assert pairs(n_queries=n_queries, n_keys=n_keys, window=most, ratio=ratio, causal=True) == counted


@QUICK
@given(st.integers(1, 40), st.integers(0, 40), st.none() | st.integers(1, 50))
def test_without_a_mask_every_query_counts_as_the_last(n_queries: int, before: int, window: int | None) -> None:
    n_keys = before + n_queries
    last = len(seen(n_keys - 1, window, chunked=False))
    assert pairs(n_queries=n_queries, n_keys=n_keys, window=window) == n_queries * last


@QUICK
@given(st.integers(1, 40), st.integers(0, 40), st.none() | st.integers(1, 50))
def test_keys_are_read_once_where_any_query_sees_them(n_queries: int, before: int, window: int | None) -> None:
    n_keys = before + n_queries
    read = {key for p in range(before, n_keys) for key in seen(p, window, chunked=False)}
    assert keys_read(n_queries=n_queries, n_keys=n_keys, window=window) == len(read)


def test_an_indexer_picks_for_each_query() -> None:
    assert keys_read(n_queries=1, n_keys=10_000, chosen=2048) == 2048
    assert keys_read(n_queries=1, n_keys=1000, chosen=2048) == 1000
    assert keys_read(n_queries=10_000, n_keys=10_000, chosen=2048) == 10_000


@pytest.mark.parametrize(("n_experts", "top_k", "tokens"), [(4, 2, 1), (4, 2, 2), (4, 2, 3), (5, 1, 3), (3, 3, 2)])
def test_experts_hit_are_the_mean_over_all_ways_to_choose(n_experts: int, top_k: int, tokens: int) -> None:
    choices = list(combinations(range(n_experts), top_k))
    mean = fmean(len(set().union(*way)) for way in product(choices, repeat=tokens))
    sizes = {"n_experts": n_experts, "top_k": top_k, "idle_share": 1 - top_k / n_experts}
    assert experts_hit(tokens=tokens, **sizes) == pytest.approx(mean, rel=1e-12)
