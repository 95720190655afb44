"""Compressed attention: rows, keys and waiting tokens by hand, and what tensor parallelism divides."""

import pytest

from calc.errors import SpecError
from calc.model.cache import cache_elements, fp32_elements, mixers_state_bytes, rank_cache_elements, state_elements
from calc.model.compressed import Compressor, WindowRow
from calc.model.layers import Dense, LayerSpec
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.tensors import OTHER, WHOLE

ROWS = WindowRow(n_heads=4, head_dim=16, rope_dim=4, q_lora_rank=6, o_groups=2, o_lora_rank=3, window=8)
SPARSE = Compressor(head_dim=16, ratio=4, overlap=True, q_lora_rank=6, index_heads=2, index_dim=8)
HEAVY = Compressor(head_dim=16, ratio=8, overlap=False, q_lora_rank=6)


def model(*mixers):
    feed = Dense(intermediate_size=8)
    layers = tuple(LayerSpec(hidden_size=8, mixers=own, feed_forwards=(feed,), norm_params=16) for own in mixers)
    return ModelSpec(name="m", layers=layers, vocab_size=10)


MODEL = model((ROWS,), (ROWS, SPARSE), (ROWS, HEAVY))


def test_rows_per_token():
    """A whole row in three windows, a fourth and an eighth of a row, a fourth of a key of 8."""
    kept = cache_elements(MODEL)
    assert (kept.latent, kept.full, kept.windowed) == (16 // 4 + 16 // 8, 0, {8: 3 * 16})
    assert (SPARSE.index_elements, HEAVY.index_elements) == (2, 0)


def test_waiting_tokens_are_in_fp32():
    """Value and weight of 2 groups of 4 tokens, twice as wide for the overlap; of 8 tokens without it."""
    sparse, heavy = 2 * 4 * 2 * 2 * (16 + 8), 8 * 2 * 16
    assert (SPARSE.state_elements, HEAVY.state_elements) == (sparse, heavy)
    assert (state_elements(MODEL), fp32_elements(MODEL)) == (0, sparse + heavy)
    assert mixers_state_bytes({SPARSE: 2, HEAVY: 1}, FORMATS["fp8"], 4) == 4 * (2 * sparse + heavy)


def test_every_rank_holds_all_rows():
    assert rank_cache_elements(MODEL, 2) == cache_elements(MODEL)
    assert ROWS.problem(2) is None
    assert "4 query heads are not divisible by 8" in ROWS.problem(8)
    assert "the 2 groups of the output projection are not divisible by 4" in ROWS.problem(4)


def test_parameters_by_hand():
    rows = 6 * (8 + 64 + 1) + 16 * 9 + 3 * (64 + 16) + 4
    sparse = 2 * (16 + 8) * (2 * 8 + 4) + 16 + 8 + 2 * (6 * 8 + 8)
    heavy = 16 * (2 * 8 + 8) + 16
    for part, params in ((ROWS, rows), (SPARSE, sparse), (HEAVY, heavy)):
        assert int(part.term(8).value) == params == sum(tensor.params for tensor in part.tensors(8))


def test_what_makes_rows_is_whole_and_never_quantized():
    made = [tensor for tensor in SPARSE.tensors(8) if "compressor" in tensor.name]
    assert {tensor.share for tensor in SPARSE.tensors(8)} == {WHOLE}
    assert {tensor.role for tensor in made if "proj" in tensor.name} == {OTHER}


@pytest.mark.parametrize(("field", "words"), [({"head_dim": 18}, "head_dim 18"), ({"index_dim": 6}, "index_dim 6")])
def test_rows_that_tokens_do_not_share_evenly(field, words):
    sizes = {"head_dim": 16, "ratio": 4, "overlap": True, "q_lora_rank": 6, "index_heads": 2, "index_dim": 8}
    with pytest.raises(SpecError, match=words):
        Compressor(**sizes | field)
