"""calc.model.spec: impossible fields are refused when a record is made, with the field's name."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import SpecError
from calc.model.edit import edit
from calc.model.spec import DIMENSIONS
from calc.units import MAX_COUNT
from tests.calc.strategies import LLAMA


@pytest.mark.parametrize("name", DIMENSIONS)
@pytest.mark.parametrize("value", [0, -1, 1.0, "32", None, True, MAX_COUNT + 1, 10**400])
def test_dimension_must_be_a_positive_whole_number(name, value):
    with pytest.raises(SpecError, match=f"^{name} must be") as caught:
        edit(LLAMA, **{name: value})
    assert caught.value.field == name


def test_a_number_too_long_to_print_is_refused_all_the_same():
    with pytest.raises(SpecError, match="a negative number of more than 18 digits"):
        edit(LLAMA, n_layers=-(10**5000))


def test_kv_heads_divide_heads_and_near_divisors_are_offered():
    with pytest.raises(SpecError) as caught:
        edit(LLAMA, n_kv_heads=7)
    assert caught.value.field == "n_kv_heads"
    assert "n_heads 32 is not divisible by n_kv_heads 7" in str(caught.value)
    assert "(try 2, 4, 8)" in str(caught.value)


@given(st.integers(1, 512), st.integers(1, 512))
def test_kv_heads_are_accepted_exactly_when_they_divide(n_heads, n_kv_heads):
    try:
        spec = edit(LLAMA, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=128)
    except SpecError as error:
        assert n_heads % n_kv_heads
        offered = str(error).split("try ")[1].rstrip(")").split(", ")
        assert all(n_heads % int(divisor) == 0 for divisor in offered)
    else:
        assert spec.group_size * n_kv_heads == n_heads


def test_sliding_layers_need_a_window_and_fit_in_the_model():
    with pytest.raises(SpecError, match="window must be given"):
        edit(LLAMA, n_sliding_layers=16)
    with pytest.raises(SpecError, match="exceeds n_layers"):
        edit(LLAMA, n_sliding_layers=33, window=4096)
    with pytest.raises(SpecError, match="window must be at least 1"):
        edit(LLAMA, n_sliding_layers=16, window=0)
    assert edit(LLAMA, n_sliding_layers=16, window=4096).n_full_layers == 16


def test_records_are_frozen():
    with pytest.raises(FrozenInstanceError):
        LLAMA.n_layers = 3  # type: ignore[misc]
