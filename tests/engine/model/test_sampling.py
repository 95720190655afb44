"""Choosing tokens: exact distributions, draws that follow them, refusals that name the field."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import EngineFailure, OptionError
from engine.model.sampling import Sampler

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0, -math.inf]])  # probabilities 0.032, 0.644, 0.087, 0.237, 0


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(v) for v in values]
    return [w / sum(weights) for w in weights]


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert Sampler()(LOGITS).tolist() == [[1]]
    assert Sampler()(torch.tensor([[2.0, 5.0, 5.0]])).tolist() == [[1]]


def test_greedy_ignores_top_k_top_p_and_seed() -> None:
    assert Sampler(top_k=2, top_p=0.1, seed=4)(LOGITS).item() == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    got = Sampler(temperature=temperature).probabilities(LOGITS)[0].tolist()
    assert got == pytest.approx([*softmax([v / temperature for v in (0, 3, 1, 2)]), 0], abs=1e-6)


def test_top_k_keeps_the_k_largest() -> None:
    got = Sampler(temperature=1, top_k=2).probabilities(LOGITS)[0].tolist()
    a, b = softmax([3, 2])
    assert got == pytest.approx([0, a, 0, b, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, [1]), (0.64, [1]), (0.65, [1, 3]), (0.9, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: list[int]) -> None:
    got = Sampler(temperature=1, top_p=top_p).probabilities(LOGITS)[0]
    assert got.nonzero().flatten().tolist() == kept
    expected = softmax([LOGITS[0, i].item() for i in kept])
    assert got[kept].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_set_that_reaches_p_exactly_is_enough() -> None:
    assert Sampler(temperature=1, top_p=0.5).probabilities(torch.zeros(1, 2))[0].tolist() == [1, 0]


def test_top_k_comes_before_top_p() -> None:
    # Of the two kept by top_k the first has 0.731, so top_p 0.7 keeps it alone; over all five it has 0.644.
    got = Sampler(temperature=1, top_k=2, top_p=0.7).probabilities(LOGITS)[0]
    assert got.tolist() == [0, 1, 0, 0, 0]


@example(logits=[-1.6e-17, 0.0], temperature=1.0, top_k=None, top_p=0.5)
@given(
    logits=st.lists(st.floats(-40, 40), min_size=2, max_size=12),
    temperature=st.floats(1e-300, 50),
    top_k=st.one_of(st.none(), st.integers(1, 15)),
    top_p=st.one_of(st.none(), st.floats(1e-9, 1)),
)
def test_probabilities_are_a_distribution_that_keeps_the_best(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    got = Sampler(temperature=temperature, top_k=top_k, top_p=top_p).probabilities(row)[0]
    assert got.sum().item() == pytest.approx(1)
    assert got.min() >= 0
    every = Sampler(temperature=temperature).probabilities(row)[0]
    assert got[every == every.max()].max() > 0  # logits closer than a rounding are equally likely
    assert top_k is None or (got > 0).sum() <= top_k


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(temperature=1, seed=7)
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[sampler(LOGITS).item()] += 1
    expected = sampler.probabilities(LOGITS)[0]
    # 4000 draws: the standard deviation of a share is at most 0.008
    assert (counts / 4000 - expected).abs().max() < 0.03
    assert counts[4] == 0


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    flat = torch.zeros(1, 1000)
    state = torch.get_rng_state()
    first, again, other = (Sampler(temperature=1, seed=seed) for seed in (3, 3, 4))
    draws = [[sampler(flat).item() for _ in range(8)] for sampler in (first, again, other)]
    assert draws[0] == draws[1] != draws[2]
    unseeded = [[Sampler(temperature=1)(flat).item() for _ in range(8)] for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", 0), ("top_p", 0.0),
     ("top_p", 1.5), ("top_p", math.nan), ("seed", -1), ("seed", 2**63)],
)  # fmt: skip
def test_impossible_options_are_named(field: str, value: float) -> None:
    with pytest.raises(OptionError, match=field) as caught:
        Sampler(**{field: value})
    assert caught.value.field == field
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_numbers_are_a_failure(bad: float, temperature: float) -> None:
    with pytest.raises(EngineFailure, match="float16 may be too narrow"):
        Sampler(temperature=temperature)(torch.tensor([[1.0, bad, 2.0]], dtype=torch.float16))


def test_min_p_keeps_what_is_likely_enough() -> None:
    """Chances 0.6, 0.3, 0.1: 0.4 times the likeliest is 0.24."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    got = Sampler(temperature=1, min_p=0.4).probabilities(logits)
    torch.testing.assert_close(got, torch.tensor([[2 / 3, 1 / 3, 0.0]]))
    assert Sampler(temperature=1, min_p=1).probabilities(logits)[0].tolist() == [1, 0, 0]


def test_penalties_lower_tokens_of_the_text() -> None:
    """Repetition: what the prompt or the answer has, divided, or multiplied below 0; presence: what the answer has."""
    sampler = Sampler(repetition_penalty=2.0, presence_penalty=0.5)
    logits = torch.tensor([[3.0, -1.0, 2.0, 4.0]])
    assert sampler.penalised(logits, [0, 1], [2, 2])[0].tolist() == [1.5, -2.0, 0.5, 4.0]
    assert logits[0].tolist() == [3.0, -1.0, 2.0, 4.0]
    assert sampler.looks_back
    assert not Sampler(repetition_penalty=1.0, presence_penalty=0.0).looks_back


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": 1e9}, "presence_penalty"),
    ],
)
def test_new_options_that_mean_nothing_are_named(options: dict[str, float], field: str) -> None:
    with pytest.raises(OptionError) as caught:
        Sampler(**options)  # type: ignore[arg-type]
    assert caught.value.field == field
