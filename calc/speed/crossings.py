"""Where the limit of decoding changes: the batch from which arithmetic decides, the context where the cache does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from calc.speed.estimate import Steps
from calc.speed.kernels import PRODUCTS
from calc.step.operators import Kind, total

MOST_BATCH, MOST_CONTEXT = 2**20, 2**27
WEIGHTED = PRODUCTS | {Kind.EXPERTS}
"""Operators that multiply with weights."""


def compute_bound_batch(steps: Steps) -> int | None:
    """The smallest batch whose step takes longer to compute than to read, at the asked context; None where none does.

    Attention reads a cache of its own for every sequence, so that many models never get there.
    """

    def computes(batch: int) -> bool:
        step = steps.decode(batch, steps.middle)
        return step.compute_s >= step.memory_s

    return _first(computes, MOST_BATCH)


def products_compute_bound_batch(steps: Steps) -> int | None:
    """The smallest batch whose products with weights take longer to compute than to read; None where none does."""

    def computes(batch: int) -> bool:
        products = [one for one in steps.decode(batch, steps.middle).operators if one.operator.kind in WEIGHTED]
        return sum(one.compute_s for one in products) >= sum(one.memory_s for one in products)

    return _first(computes, MOST_BATCH)


def compute_bound_prompt(steps: Steps) -> int | None:
    """The shortest prompt that takes longer to compute than to read, all alone; None where none does."""

    def computes(tokens: int) -> bool:
        one = replace(steps, asked=replace(steps.asked, prompt_tokens=tokens)).prefill()
        return one.compute_s >= one.memory_s

    return _first(computes, MOST_CONTEXT)


def cache_over_weights(steps: Steps, batch: int) -> int | None:
    """The shortest context at which a step of `batch` reads more cache than weights; None where none does."""

    def more(context: int) -> bool:
        operators = [one.operator for one in steps.decode(batch, context).operators]
        return bool(total(operators, "cache_bytes") >= total(operators, "weight_bytes"))

    return _first(more, MOST_CONTEXT)


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest number up to `most` for which `holds`, which stays true from there on."""
    high = 1
    while not holds(high):
        if high >= most:
            return None
        high *= 2
    low = high // 2  # does not hold, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
