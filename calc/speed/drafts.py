"""What drafting gives: tokens per step, and from which acceptance on it pays."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

BISECTIONS = 40


def step_tokens(drafted: int, acceptance: Any) -> float:
    """Tokens that a step is expected to give: 1 + A + A² + … of K drafted ones (Leviathan et al. 2022, (1))."""
    return float(sum(acceptance**i for i in range(drafted + 1)))


def acceptance_that_pays(drafted: int, step_ratio: float) -> float | None:
    """The acceptance from which on K drafted tokens pay, where a step with them takes `step_ratio` times as long.

    0 where it takes no longer; None where not even K + 1 tokens per step would pay.
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
