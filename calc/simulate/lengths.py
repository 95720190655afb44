"""How long are prompts and answers? One length, a range, or a distribution with its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, exp, log, pi, sqrt
from random import Random

from calc.errors import QuantityError
from calc.units import parse_count

MOST_TOKENS = 10**7
"""Draws are limited to this: no model supports more."""
MOST_SIGMA = 5.0
FORMS = "1024, 512..2048, exponential:300, normal:1000,200 or lognormal:800,0.7 (median, sigma)"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens, as written. Draws are rounded and at least 1."""

    text: str
    value: Callable[[Random], float]

    def draw(self, random: Random) -> int:
        """One length."""
        return max(1, min(MOST_TOKENS, round(self.value(random))))


def fixed(tokens: int) -> Lengths:
    """Always the same."""
    return Lengths(f"{tokens:,}", lambda random: tokens)


def parse_lengths(text: str) -> Lengths:
    """Lengths as written on the command line. Raises QuantityError.

    >>> parse_lengths("1k").draw(Random(0)), parse_lengths("10..12").draw(Random(1))
    (1000, 10)
    """
    name, colon, parameters = text.strip().lower().partition(":")
    if colon:
        return _distribution(name.strip(), parameters)
    first, dots, last = name.partition("..")
    if not dots:
        return fixed(parse_count(first, maximum=MOST_TOKENS))
    low, high = parse_count(first, maximum=MOST_TOKENS), parse_count(last, maximum=MOST_TOKENS)
    if low > high:
        raise QuantityError(f"the range {text.strip()!r} ends before it begins: write {high}..{low}")
    return Lengths(f"{low:,} to {high:,}", lambda random: low + int(random.random() * (high - low + 1)))


def _distribution(name: str, parameters: str) -> Lengths:
    values = [part.strip() for part in parameters.split(",")]
    if (name, len(values)) not in (("exponential", 1), ("normal", 2), ("lognormal", 2)):
        raise QuantityError(f"{name}:{parameters.strip()} is not a distribution of lengths: write {FORMS}")
    middle = parse_count(values[0], maximum=MOST_TOKENS)
    if name == "exponential":
        return Lengths(f"exponential, mean {middle:,}", lambda random: -middle * log(1.0 - random.random()))
    if name == "normal":
        deviation = parse_count(values[1], minimum=0, maximum=MOST_TOKENS)
        return Lengths(f"normal, mean {middle:,}, deviation {deviation:,}", lambda r: middle + deviation * _normal(r))
    sigma = _sigma(values[1])
    return Lengths(f"log-normal, median {middle:,}, sigma {sigma:g}", lambda r: middle * exp(sigma * _normal(r)))


def _sigma(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MOST_SIGMA:
        raise QuantityError(f"sigma of a log-normal length is a number up to {MOST_SIGMA:g} such as 0.7, not {text!r}")
    return value


def _normal(random: Random) -> float:
    """The Box-Muller method: it uses only uniform numbers, whose sequence is the same in all Python versions."""
    return sqrt(-2.0 * log(1.0 - random.random())) * cos(2.0 * pi * random.random())
