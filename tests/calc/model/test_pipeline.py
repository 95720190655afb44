"""calc.model.pipeline: the layers of each stage, as vLLM divides them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.model.pipeline import stage_layers


def sizes(stages: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    return tuple(end - start for start, end in stages)


@pytest.mark.parametrize(
    ("n_layers", "pp", "layers"),
    [
        (32, 1, (32,)),
        (32, 2, (16, 16)),
        (80, 3, (27, 27, 26)),
        (61, 4, (15, 15, 16, 15)),
        (62, 4, (15, 16, 16, 15)),
        (63, 4, (16, 16, 16, 15)),
        (5, 5, (1, 1, 1, 1, 1)),
    ],
)
def test_layers_as_vllm_divides_them(n_layers: int, pp: int, layers: tuple[int, ...]) -> None:
    """vllm/distributed/utils.py, get_pp_indices: the remainder goes before the last stage, backwards."""
    assert sizes(stage_layers(n_layers, pp)) == layers


@given(n_layers=st.integers(1, 200), pp=st.integers(1, 200))
def test_stages_hold_every_layer_once_and_differ_by_one(n_layers: int, pp: int) -> None:
    stages = stage_layers(n_layers, min(n_layers, pp))
    assert [start for start, _ in stages[1:]] == [end for _, end in stages[:-1]]
    assert (stages[0][0], stages[-1][1]) == (0, n_layers)
    held = sizes(stages)
    assert max(held) - min(held) <= 1
    assert held[-1] == min(held)


def test_layers_that_are_given() -> None:
    assert stage_layers(10, 3, (2, 5, 3)) == ((0, 2), (2, 7), (7, 10))
