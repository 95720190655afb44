"""Speculative decoding: tokens per step, and the acceptance rate from which it pays."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

BISECTIONS = 40


def step_tokens(drafted: int, acceptance: Any) -> float:
    """Expected tokens per step: 1 + A + A² + … of K drafted ones (Leviathan et al. 2022, (1))."""
    return float(sum(acceptance**i for i in range(drafted + 1)))


def acceptance_that_pays(drafted: int, step_ratio: float) -> float | None:
    """The acceptance rate from which K drafted tokens pay, if a step with them takes `step_ratio` times as long.

    0 if it takes no longer; None if even K + 1 tokens per step would not pay.
    """
    if step_ratio <= 1:
        return 0.0
    if step_ratio > drafted + 1:
        return None
    low, high = Fraction(0), Fraction(1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if step_tokens(drafted, float(middle)) >= step_ratio else (middle, high)
    return float(high)
