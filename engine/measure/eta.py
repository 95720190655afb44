"""Estimates how long the rest of a benchmark takes, from the measured runs. No torch here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.measure.timing import median

Arm = Literal["with_cache", "without_cache"]
ARMS: tuple[Arm, Arm] = ("with_cache", "without_cache")

# How the time of one run may grow with the prompt length, as the exponent of a power law. A full recompute
# does work between linear (projections) and quadratic (attention) in the length. Short prompts hide that
# behind fixed costs, so the law is never taken below linear when guessing a longer one: early guesses are
# rather too long than too short. With the cache only the prefill grows.
_EXPONENTS: dict[Arm, tuple[float, float]] = {"with_cache": (0.0, 2.0), "without_cache": (1.0, 2.0)}


@dataclass(slots=True, kw_only=True)
class RemainingTime:
    """Collects run times by prompt length and arm, and extrapolates those still to come."""

    lengths: Sequence[int]
    runs_per_length: int
    """Runs of one arm at one length, warm-up included."""
    measured: dict[tuple[Arm, int], list[float]] = field(default_factory=dict)

    def add(self, arm: Arm, length: int, seconds: float) -> None:
        """Record one run."""
        self.measured.setdefault((arm, length), []).append(seconds)

    def remaining_s(self) -> float | None:
        """Seconds for all runs not recorded yet; None until both arms have run once."""
        total = 0.0
        for arm in ARMS:
            for length in self.lengths:
                left = self.runs_per_length - len(self.measured.get((arm, length), ()))
                if left <= 0:
                    continue
                one = self.run_s(arm, length)
                if one is None:
                    return None
                total += left * one
        return total

    def run_s(self, arm: Arm, length: int) -> float | None:
        """Seconds of one run: the median of those measured, or a power law through the nearest lengths."""
        known = {at: median(times) for (of, at), times in self.measured.items() if of == arm}
        if not known:
            return None
        if length in known:
            return known[length]
        near, *others = sorted(known, key=lambda at: abs(math.log(at / length)))
        exponent = _exponent(arm, near, known[near], others[0] if others else near, known)
        return known[near] * math.pow(length / near, exponent)


def _exponent(arm: Arm, near: int, near_s: float, other: int, known: dict[int, float]) -> float:
    low, high = _EXPONENTS[arm]
    if other == near or near_s <= 0 or known[other] <= 0:
        return low
    return min(high, max(low, math.log(near_s / known[other]) / math.log(near / other)))
