"""Where the bottleneck of decoding changes: the batch from which it is compute-bound, and the context from which the
cache dominates the bytes read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import ceil

from calc.speed.asked import Load
from calc.speed.estimate import Room, estimate
from calc.speed.kernels import PRODUCTS
from calc.speed.steps import Steps
from calc.step.model import mixing_operators
from calc.step.operators import Kind, total

MOST_BATCH, MOST_CONTEXT = 2**20, 2**27
WEIGHTED = PRODUCTS | {Kind.EXPERTS}
"""Operators that multiply by weights."""


def compute_bound_batch(steps: Steps) -> int | None:
    """The smallest batch whose step takes longer to compute than to read, at the given context; None if there is none.

    Attention reads a separate cache for every sequence, so many models never become compute-bound.
    """

    def excess_s(batch: int) -> float:
        step = steps.decode(batch, steps.middle)
        return float(step.compute_s - step.memory_s)

    return _first(excess_s, MOST_BATCH)


def products_compute_bound_batch(steps: Steps) -> int | None:
    """The smallest batch whose matrix products take longer to compute than to read weights; None if there is none."""

    def excess_s(batch: int) -> float:
        products = [one for one in steps.decode(batch, steps.middle).operators if one.operator.kind in WEIGHTED]
        return float(sum(one.compute_s for one in products) - sum(one.memory_s for one in products))

    return _first(excess_s, MOST_BATCH)


def compute_bound_prompt(steps: Steps, batch: int = 1) -> int | None:
    """The shortest prompt length at which a `batch` of prompts is compute-bound; None if there is none."""

    def excess_s(tokens: int) -> float:
        one = replace(steps, asked=replace(steps.asked, prompt_tokens=tokens)).prefill(batch)
        return float(one.compute_s - one.memory_s)

    return _first(excess_s, MOST_CONTEXT)


def cache_over_weights(steps: Steps, batch: int) -> int | None:
    """The shortest context at which a step of `batch` reads more cache than weights; None if there is none."""
    step = replace(steps.base, batch=batch, new_tokens=1 + steps.asked.drafted)
    weights = total((one.operator for one in steps.decode(batch, steps.middle).operators), "weight_bytes")

    def excess_bytes(context: int) -> float:
        read = total(mixing_operators(steps.model, replace(step, context=context)), "cache_bytes")
        return float(read - weights)

    return _first(excess_bytes, MOST_CONTEXT)


def speculation_pays_to(steps: Steps, room: Room) -> int | None:
    """The largest batch whose time per token is not worse with speculation; None if it is worse even for one.

    If speculation pays for every batch that fits, the largest of those.
    """
    plain = replace(steps.asked, drafted=0, acceptance=Fraction(0), draft=None)
    load = Load.STATIC if steps.asked.load is Load.MAX else steps.asked.load

    def lost_s(batch: int) -> float:
        with_it, without = (
            estimate(steps.study, replace(one, load=load, count=batch), room) for one in (steps.asked, plain)
        )
        assert with_it.tpot is not None
        assert without.tpot is not None
        return float(with_it.tpot.mid - without.tpot.mid)

    most = min(room.fitting, MOST_BATCH)
    first = _first(lost_s, most) if most else None
    return most if first is None and most else (first or 1) - 1 or None


def _first(excess: Callable[[int], float], most: int) -> int | None:
    """The smallest number up to `most` from which on the excess is not negative.

    Excess is nearly linear: the search alternates between linear interpolation and bisection.
    """
    ends = {1: excess(1), most: excess(most)}
    if ends[1] >= 0:
        return 1
    if ends[most] < 0:
        return None
    low, high, straight = 1, most, True
    while high - low > 1:
        share = ends[low] / (ends[low] - ends[high]) if straight else 0.5
        tried = min(max(low + ceil(share * (high - low)), low + 1), high - 1)
        ends[tried], straight = excess(tried), not straight
        low, high = (low, tried) if ends[tried] >= 0 else (tried, high)
    return high
