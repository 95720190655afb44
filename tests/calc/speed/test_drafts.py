"""Tokens per step, and from which acceptance on drafting pays."""

from fractions import Fraction

import pytest

from calc.speed.drafts import acceptance_that_pays, step_tokens


def test_tokens_per_step_by_hand() -> None:
    assert step_tokens(3, Fraction(1, 2)) == 1 + 1 / 2 + 1 / 4 + 1 / 8
    assert (step_tokens(4, 1.0), step_tokens(4, 0.0), step_tokens(0, 0.7)) == (5.0, 1.0, 1.0)


def test_drafting_pays_from_the_acceptance_that_makes_up_for_a_longer_step() -> None:
    """One drafted token, a step 1.4 times as long: 1 + A = 1.4. Two, 1.75 times: 1 + A + A² = 1.75 at A = 1/2."""
    assert acceptance_that_pays(1, 1.4) == pytest.approx(0.4, abs=1e-9)
    assert acceptance_that_pays(2, 1.75) == pytest.approx(0.5, abs=1e-9)
    assert acceptance_that_pays(3, 1.0) == 0.0
    assert acceptance_that_pays(3, 4.1) is None
    for ratio in (1.1, 2.0, 3.9):
        found = acceptance_that_pays(3, ratio)
        assert found is not None
        assert step_tokens(3, found) == pytest.approx(ratio, abs=1e-6)
