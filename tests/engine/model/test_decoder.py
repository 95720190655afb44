"""The decoder: against the numpy oracle, cached against uncached, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import CacheError, PromptError
from engine.model.decoder import Decoder, attention_mask, check_ids
from engine.model.made_weights import empty_weights, random_weights
from engine.model.reference import config_from_reference, from_reference_name
from engine.model.rotary import rope_frequencies, rotate_
from engine.model.shapes import n_parameters, parameter_shapes
from tests.engine import oracle
from tests.engine.models import VARIANTS, decoder, llama_config
from tests.examples import examples

MODELS = {name: decoder(name) for name in VARIANTS}


def reference_decoder(state: dict[str, np.ndarray]) -> Decoder:
    config = config_from_reference({name: values.shape for name, values in state.items()})
    return Decoder(config, {from_reference_name(n): t for n, t in oracle.as_tensors(state).items()})


def random_ids(model: Decoder, rows: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (rows, n_tokens), generator=generator)


# --- against the oracle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, {"n_layers": 1, "d_model": 7, "d_ff": 3, "vocab": 5}, {"n_layers": 4}])
def test_reference_model_equals_the_oracle(sizes: dict[str, int]) -> None:
    state = oracle.random_state_dict(**sizes, seed=3)
    model = reference_decoder(state)
    ids = random_ids(model, 3, 11)
    expected = np.stack([oracle.logits(state, row) for row in ids.tolist()])
    np.testing.assert_allclose(model.forward(ids).numpy(), expected, rtol=0, atol=1e-12)


def test_every_weight_of_the_reference_model_matters() -> None:
    state = oracle.random_state_dict(n_layers=2)
    ids = random_ids(reference_decoder(state), 1, 24)
    before = reference_decoder(state).forward(ids)
    for name in state:
        changed = state | {name: state[name] + np.random.default_rng(0).normal(size=state[name].shape)}
        assert not torch.allclose(reference_decoder(changed).forward(ids), before, atol=1e-3), name


# --- the cache changes nothing ----------------------------------------------------------------------------


@given(variant=st.sampled_from(sorted(VARIANTS)), rows=st.integers(1, 3), data=st.data())
@examples(80)
def test_every_split_of_a_prompt_gives_the_same_logits(variant: str, rows: int, data: st.DataObject) -> None:
    model = MODELS[variant]
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    ids = random_ids(model, rows, sum(sizes), seed=len(sizes))
    kind = data.draw(st.sampled_from(("full", "window")))
    cache = model.new_cache(sum(sizes) + data.draw(st.integers(0, 3)), rows, kind=kind)
    pieces = [model.forward(piece, cache) for piece in torch.split(ids, sizes, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model.forward(ids), rtol=0, atol=1e-12)
    assert cache.length == sum(sizes)


@given(variant=st.sampled_from(sorted(VARIANTS)), kind=st.sampled_from(("full", "window")), data=st.data())
@examples(80)
def test_ragged_rows_give_the_logits_of_each_alone(variant: str, kind: str, data: st.DataObject) -> None:
    """Rows of different lengths, filled up at the left: prefill in chunks, then steps."""
    model = MODELS[variant]
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    padding = data.draw(st.lists(st.integers(0, sizes[0] + 1), min_size=2, max_size=3))
    total = sum(sizes) + 2
    ids = random_ids(model, len(padding), total, seed=total)
    cache = model.new_cache(total, len(padding), kind=kind, padding=padding)
    together = torch.cat([model.forward(piece, cache) for piece in torch.split(ids, [*sizes, 1, 1], dim=1)], 1)
    for row, n in enumerate(padding):
        alone = model.forward(ids[row : row + 1, n:])
        torch.testing.assert_close(together[row : row + 1, n:], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_a_batch_do_not_see_each_other(variant: str) -> None:
    model = MODELS[variant]
    ids = random_ids(model, 4, 9)
    apart = torch.cat([model.forward(row[None]) for row in ids])
    torch.testing.assert_close(model.forward(ids), apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_does_not_see_later_ones(variant: str) -> None:
    model = MODELS[variant]
    ids = random_ids(model, 1, 9)
    other = ids.clone()
    other[0, 6:] = (other[0, 6:] + 1) % model.config.vocab_size
    before, after = model.forward(ids), model.forward(other)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-3)


def test_a_sliding_window_hides_exactly_what_is_farther_back() -> None:
    model = decoder("sliding", n_layers=1, sliding_window=5)
    ids = random_ids(model, 1, 12)
    for changed, sees in ((6, False), (7, True)):  # position 11 sees 7..11
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % model.config.vocab_size
        same = torch.allclose(model.forward(ids)[0, 11], model.forward(other)[0, 11], atol=1e-12)
        assert same is not sees


@pytest.mark.parametrize("variant", VARIANTS)
def test_last_only_is_the_last_of_all(variant: str) -> None:
    model = MODELS[variant]
    ids = random_ids(model, 2, 7)
    torch.testing.assert_close(model.forward(ids, last_only=True), model.forward(ids)[:, -1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_tokens", [1, 7])
def test_the_attention_scale_multiplies_the_queries(n_tokens: int) -> None:
    """Half the scale and twice the query weights are the same model, in one pass and in a decode step."""
    config = llama_config()
    weights = random_weights(config, dtype=torch.float64)
    doubled = {name: 2 * t if "q_proj" in name else t for name, t in weights.items()}
    model = Decoder(config, weights)
    other = Decoder(replace(config, attention_scale=config.attention_scale / 2), doubled)
    ids = random_ids(model, 1, 9 + n_tokens)
    logits = []
    for decoder_ in (model, other):
        cache = decoder_.new_cache(ids.size(1))
        decoder_.forward(ids[:, :9], cache)
        logits.append(decoder_.forward(ids[:, 9:], cache))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-12)


def test_a_reset_cache_is_as_good_as_new() -> None:
    model = MODELS["llama"]
    ids = random_ids(model, 1, 8)
    cache = model.new_cache(8)
    model.forward(random_ids(model, 1, 8, seed=9), cache)
    cache.reset()
    assert torch.equal(model.forward(ids, cache), model.forward(ids, model.new_cache(8)))


# --- rotary positions -------------------------------------------------------------------------------------


def test_rotation_turns_each_pair_by_its_own_angle() -> None:
    model = decoder()
    assert model.rotaries[0] is not None
    cos, sin = model.rotaries[0].rows(3, 5)
    x = torch.randn(1, 2, 1, 6, dtype=torch.float64)
    turned = x.clone()
    rotate_(turned, cos, sin)
    for row, position in enumerate((3, 4)):
        for pair in range(3):
            angle = position * 10_000 ** (-2 * pair / 6)
            z = complex(x[0, row, 0, pair], x[0, row, 0, pair + 3]) * np.exp(1j * angle)
            assert abs(z - complex(turned[0, row, 0, pair], turned[0, row, 0, pair + 3])) < 1e-12


def test_only_distances_count_for_rotary_attention() -> None:
    """The same tokens later in the context give the same logits: rotary attention is relative."""
    model = decoder(n_layers=1)
    ids = random_ids(model, 1, 4)
    assert model.rotaries[0] is not None
    shifted = decoder(n_layers=1)
    assert shifted.rotaries[0] is not None
    rows = shifted.rotaries[0].rows
    shifted.rotaries[0].rows = lambda start, stop, **how: rows(start + 30, stop + 30, **how)  # type: ignore[method-assign]
    torch.testing.assert_close(model.forward(ids), shifted.forward(ids), rtol=0, atol=1e-12)


def test_rotary_tables_grow_without_changing() -> None:
    model = decoder(max_positions=4096)
    (rotary,) = model.rotaries
    assert rotary is not None
    early = rotary.rows(60, 64)[0].clone()
    late = rotary.rows(3000, 3001)[0]
    assert torch.equal(rotary.rows(60, 64)[0], early)
    expected = np.cos(3000 * 10_000 ** (-np.arange(0, 6, 2) / 6))
    np.testing.assert_allclose(late[0, 0, :3], expected, atol=1e-12)


def test_plain_rope_frequencies() -> None:
    np.testing.assert_allclose(rope_frequencies(4, 100.0, None).numpy(), [1.0, 0.1])


# --- masks and refusals -----------------------------------------------------------------------------------


@given(n_new=st.integers(1, 8), past=st.integers(0, 8), window=st.one_of(st.none(), st.integers(1, 9)))
def test_mask_says_who_sees_whom(n_new: int, past: int, window: int | None) -> None:
    queries, keys = torch.arange(past, past + n_new), torch.arange(past + n_new)
    mask = attention_mask(queries, keys, window=window).tolist()
    for query in range(n_new):
        for key in range(past + n_new):
            back = past + query - key
            assert mask[query][key] == (back >= 0 and (window is None or back < window))


def test_positions_beyond_the_table_are_refused_with_the_numbers() -> None:
    model = decoder("one-head-learned", max_positions=10)
    with pytest.raises(PromptError, match="11 tokens do not fit in the model's 10 positions"):
        model.forward(random_ids(model, 1, 11))
    cache = model.new_cache(20)
    model.forward(random_ids(model, 1, 10), cache)
    with pytest.raises(PromptError, match="11 tokens"):
        model.forward(random_ids(model, 1, 1), cache)


def test_a_full_cache_is_refused_and_left_as_it_was() -> None:
    model = MODELS["llama"]
    cache = model.new_cache(5)
    model.forward(random_ids(model, 1, 4), cache)
    held = cache.storage[..., :4, :].clone()
    with pytest.raises(CacheError, match="4 of 5 tokens; 2 more"):
        model.forward(random_ids(model, 1, 2), cache)
    assert cache.length == 4
    assert torch.equal(cache.storage[..., :4, :], held)


@pytest.mark.parametrize(("ids", "words"), [([[0, 29]], "29 is outside.*0 to 28"), ([[-1, 3]], "-1"), ([[]], "empty")])
def test_ids_are_checked(ids: list[list[int]], words: str) -> None:
    with pytest.raises(PromptError, match=words):
        check_ids(torch.tensor(ids, dtype=torch.int64), llama_config())


# --- counts and positions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_as_stored(variant: str) -> None:
    model = MODELS[variant]
    stored = empty_weights(model.config)
    assert model.n_parameters == sum(t.numel() for t in stored.values()) == n_parameters(model.config)
    assert model.weight_bytes == 8 * model.n_parameters
    assert Decoder(model.config, stored).n_parameters == model.n_parameters


def test_llama_3_8b_has_the_published_count() -> None:
    config = llama_config(
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        hidden_size=4096,
        intermediate_size=14336,
        vocab_size=128256,
        max_positions=8192,
    )
    assert n_parameters(config) == 8_030_261_248
    assert Decoder(config, empty_weights(config, dtype=torch.bfloat16)).weight_bytes == 16_060_522_496


def test_a_tied_head_is_counted_once_and_is_the_embedding() -> None:
    tied, untied = decoder("llama", tied=True), decoder("llama")
    assert untied.n_parameters - tied.n_parameters == 29 * 16
    assert tied.head.weight is tied.embedding
    assert "lm_head.weight" not in parameter_shapes(tied.config)


def test_more_positions_keep_the_known_ones() -> None:
    model = decoder("one-head-learned", max_positions=10)
    longer = model.with_positions(40)
    ids = random_ids(model, 1, 10)
    assert torch.equal(longer.forward(ids), model.forward(ids))
    assert longer.forward(random_ids(model, 1, 40)).isfinite().all()
    assert longer.n_parameters == model.n_parameters + 30 * 16
    assert (model.config.max_positions, longer.config.max_positions) == (10, 40)
    assert model.with_positions(8) is model


def test_more_rotary_positions_need_no_parameters() -> None:
    model = decoder(max_positions=16)
    longer = model.with_positions(64)
    assert longer.n_parameters == model.n_parameters
    assert longer.forward(random_ids(model, 1, 64)).shape == (1, 64, 29)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 2e-6), (torch.bfloat16, 0.05), (torch.float16, 0.005)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_narrower_dtypes_stay_near_float64(variant: str, dtype: torch.dtype, share: float) -> None:
    """Within a few roundings (2^-24, 2^-9, 2^-12) of the largest logit."""
    exact = MODELS[variant]
    narrow = decoder(variant, dtype=dtype)
    ids = random_ids(exact, 2, 9)
    cache = narrow.new_cache(9, 2)
    logits = torch.cat([narrow.forward(piece, cache) for piece in torch.split(ids, [5, 1, 3], dim=1)], 1)
    expected = exact.forward(ids)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=share * expected.abs().max().item())
