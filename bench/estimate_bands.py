"""Bands from residuals: quantiles over public runs by kind and class, and their coverage of held-out pairs.

A pair is a model on a device; all pairs have the same weight, regardless of how many values they have. Used by
bench/estimates.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import exp

from calc.speed.spans import WIDE

LOW, HIGH = 0.06, 0.94
"""Quantiles of the residuals of known pairs; of unknown ones they hold less."""
FEWEST_PAIRS, FEWEST_NUMBERS = 4, 20
"""Fewer tell nothing of a pair that is not among them."""
OWN_PAIRS = 8
"""From so many on a class has a band of its own (AMD from the fewest on: no other is like it)."""
Pair = tuple[str, str]
Residual = tuple[Pair, float, bool]
"""Pair, log(measured / expected) of the time, and whether the band is of what was never measured."""


def quantiles(residuals: Sequence[Residual], fewest: int = FEWEST_PAIRS) -> tuple[float, float] | None:
    """Factors on the expected time between which residuals lie; None where they are of too few pairs."""
    of_pair: dict[Pair, int] = defaultdict(int)
    for pair, _, _ in residuals:
        of_pair[pair] += 1
    if len(of_pair) < fewest or len(residuals) < FEWEST_NUMBERS:
        return None
    errors = sorted((error, 1 / of_pair[pair]) for pair, error, _ in residuals)
    return exp(_quantile(errors, LOW)), exp(_quantile(errors, HIGH))


def _quantile(weighted: Iterable[tuple[float, float]], share: float) -> float:
    """The value below which `share` of the weight lies."""
    weighted = list(weighted)
    left = share * sum(weight for _, weight in weighted)
    for value, weight in weighted:
        left -= weight
        if left <= 0:
            return value
    return weighted[-1][0]


class Bands:
    """Residuals by kind and class."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], list[Residual]] = defaultdict(list)

    def add(self, kind: str, name: str, residual: Residual) -> None:
        """Take a residual in."""
        self.known[kind, name].append(residual)

    def found(self) -> dict[str, tuple[float, float]]:
        """The band of every kind and class that has enough pairs, and of every kind without AMD."""
        bands = {f"{kind}, {name}": self._own(kind, name) for kind, name in sorted(self.known)}
        bands |= {kind: quantiles(self._pooled(kind)) for kind in sorted({kind for kind, _ in self.known})}
        return {name: (round(b[0], 3), round(b[1], 3)) for name, b in bands.items() if b is not None}

    def without(self, kind: str, name: str, pair: Pair) -> tuple[float, float] | None:
        """The band for a pair from all others; from every class where its own has too few."""
        return self._own(kind, name, pair) or quantiles([one for one in self._pooled(kind) if one[0] != pair])

    def _own(self, kind: str, name: str, pair: Pair | None = None) -> tuple[float, float] | None:
        others = [one for one in self.known[kind, name] if one[0] != pair]
        fewest = FEWEST_PAIRS if name == "AMD" else OWN_PAIRS
        return quantiles(others, fewest - (pair is not None))

    def _pooled(self, kind: str) -> list[Residual]:
        return [one for (its, name), rows in self.known.items() if its == kind and name != "AMD" for one in rows]

    def covered(self, studied: Mapping[str, tuple[float, float]]) -> dict[tuple[str, str, Pair], list[bool]]:
        """For every pair whether its numbers lie in the band made from the others (`studied` where these are few)."""
        held: dict[tuple[str, str, Pair], list[bool]] = defaultdict(list)
        for (kind, name), rows in self.known.items():
            bands = {pair: self.without(kind, name, pair) or studied.get(kind) for pair, _, _ in rows}
            for pair, error, wide in rows:
                band = bands[pair]
                if band is not None:
                    own = name == "AMD" and self._own(kind, name, pair) is not None
                    factor = WIDE if wide and not own else 1.0
                    held[kind, name, pair].append(band[0] / factor <= exp(error) <= band[1] * factor)
        return held
