"""Which layers each stage of a pipeline has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def stage_layers(n_layers: int, pp: int, sizes: Sequence[int] | None = None) -> tuple[tuple[int, int], ...]:
    """First and last (excluded) layer of every stage as vLLM divides them (``get_pp_indices``).

    What is over goes to the last stage but one, and before: the first has the embedding and the last one the head.
    `sizes`: the layers of each stage, if given.

    >>> stage_layers(10, 4)
    ((0, 2), (2, 5), (5, 8), (8, 10))
    """
    each, over = divmod(n_layers, pp)
    even = [each] * pp
    for back in range(2, over + 2):
        even[-back] += 1
    ends = list(accumulate(sizes or even))
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def partition_problem(n_layers: int, pp: int, sizes: tuple[int, ...] | None) -> str | None:
    """Why `sizes` cannot be the layers of `pp` stages, or None if they can."""
    if sizes is None or (len(sizes) == pp and sum(sizes) == n_layers):
        return None
    given = f"{', '.join(map(str, sizes))} are {sum(sizes):,} layers in {len(sizes):,} stages"
    return f"{given}, not the model's {n_layers:,} in {pp:,}"
