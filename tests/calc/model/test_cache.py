"""calc.model.cache: the goldens of the assignment, and a cache filled token by token."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.model.cache import kv_heads_per_rank, request_term, token_term
from calc.model.edit import edit
from calc.model.storage import FORMATS
from tests.calc.strategies import LLAMA, QUICK, formats, models, read_text

BF16 = FORMATS["bf16"]


def filled(model, context):
    """Elements held after `context` tokens, each layer a list that drops what leaves its window."""
    total = 0
    for layer in range(model.n_layers):
        held = []
        for token in range(context):
            held.append(token)
            if layer < model.n_sliding_layers and len(held) > model.window:
                held.pop(0)
        total += len(held) * 2 * model.n_kv_heads * model.head_dim
    return total


def test_llama_3_8b_to_the_byte():
    assert token_term(LLAMA, BF16).value == 131_072
    sizes = {n: request_term(LLAMA, BF16, n).value for n in (1024, 2048, 4096, 8192)}
    assert sizes == {1024: 2**27, 2048: 2**28, 4096: 2**29, 8192: 2**30}


def test_shown_formulas():
    assert token_term(LLAMA, BF16).formula == "2 · L · n_kv · d · b"
    assert token_term(LLAMA, BF16).substituted == "2 · 32 · 8 · 128 · 2"
    request = request_term(LLAMA, BF16, 8192)
    assert (request.formula, request.substituted) == ("kv · T", "131,072 · 8,192")
    sliding = edit(LLAMA, n_sliding_layers=32, window=4096)
    assert request_term(sliding, BF16, 8192).formula == "2 · n_kv · d · b · L_win · min(T, w)"
    mixed = edit(LLAMA, n_sliding_layers=16, window=4096)
    assert request_term(mixed, BF16, 8192).formula == "2 · n_kv · d · b · (L_full · T + L_win · min(T, w))"


@QUICK
@given(models(most=6), st.integers(1, 40), formats)
def test_against_a_cache_filled_token_by_token(model, context, stored):
    each = Fraction(stored.block_bytes, stored.block_elems)
    assert request_term(model, stored, context).value == filled(model, context) * each
    assert token_term(model, stored).value == filled(model, 1) * each


@QUICK
@given(models(), st.integers(1, 10_000), formats)
def test_shown_steps_have_their_values(model, context, stored):
    for term in (token_term(model, stored), request_term(model, stored, context)):
        assert read_text(term.substituted) == term.value
        assert type(term.value) is int or term.value.denominator > 1


@QUICK
@given(models(), st.integers(1, 10_000), st.integers(0, 5_000), formats, formats)
def test_monotone_in_context_and_bits(model, context, more, one, other):
    def size(n, stored):
        return request_term(model, stored, n).value

    assert size(context, one) <= size(context + more, one)
    small, large = sorted([one, other], key=lambda f: Fraction(f.block_bytes, f.block_elems))
    assert size(context, small) <= size(context, large)


@QUICK
@given(models(), st.integers(1, 10_000), formats)
def test_windows_only_save(model, context, stored):
    full = edit(model, n_sliding_layers=0, window=None)
    windowed, whole = (request_term(m, stored, context).value for m in (model, full))
    assert windowed <= whole
    if not model.n_sliding_layers or context <= model.window:
        assert windowed == whole


@pytest.mark.parametrize(
    ("name", "per_token"),
    [("bf16", 131_072), ("fp8", 65_536), ("int4", 32_768), ("q8_0", 69_632), ("q4_k", 36_864), ("mxfp4", 34_816)],
)
def test_block_formats_of_llama(name, per_token):
    """65,536 elements per token: q8_0 34/32, q4_k 144/256, mxfp4 17/32 bytes each."""
    assert token_term(LLAMA, FORMATS[name]).value == per_token


@given(st.integers(1, 64), st.integers(1, 256))
def test_heads_of_all_ranks_cover_the_model(n_kv_heads, tp):
    each = kv_heads_per_rank(n_kv_heads=n_kv_heads, tp=tp)
    assert each >= 1
    if n_kv_heads % tp == 0:
        assert each * tp == n_kv_heads
    if tp % n_kv_heads == 0:
        assert each * tp == tp  # a copy of one head on every rank


def test_part_of_a_byte_is_kept_exactly():
    odd = edit(LLAMA, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=1)
    assert token_term(odd, FORMATS["q8_0"]).value == Fraction(17, 8)
    assert ceil(request_term(odd, FORMATS["q8_0"], 3).value) == 7
