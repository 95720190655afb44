"""Which requests arrive, and when? Poisson or constant arrivals, users in a closed loop, or a list from a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import log
from random import Random
from typing import Protocol

from calc.simulate.lengths import Lengths


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: `prefix` names the shared prefix of `common_tokens` tokens (None: no sharing)."""

    at_s: float
    prompt_tokens: int
    new_tokens: int
    prefix: str | int | None = None
    common_tokens: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the finished request."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The requests: lengths, and the share of a prompt that is one of `prefixes` shared prefixes."""

    prompt: Lengths
    new: Lengths
    shared: float = 0.0
    prefixes: int = 1

    def drawn(self, n: int, seed: int) -> list[Arrival]:
        """`n` requests that all arrive at once. The same seed draws the same ones."""
        random = Random(f"lengths {seed}")
        return [self._one(random) for _ in range(n)]

    def _one(self, random: Random) -> Arrival:
        prompt, new = self.prompt.draw(random), self.new.draw(random)
        if not self.shared:
            return Arrival(0.0, prompt, new)
        return Arrival(0.0, prompt, new, int(random.random() * self.prefixes), int(prompt * self.shared))


class Source(Protocol):
    """A source of requests."""

    @property
    def next_s(self) -> float | None:
        """When the next one arrives; None where none does unless another one ends."""
        ...

    def until(self, now_s: float) -> Iterator[Arrival]:
        """Those that have arrived, in order."""
        ...

    def ended(self, now_s: float) -> None:
        """One request has ended."""
        ...


class Listed:
    """Requests whose times are known before."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals, self._at = arrivals, 0

    @property
    def next_s(self) -> float | None:
        """When the next one arrives."""
        return self._arrivals[self._at].at_s if self._at < len(self._arrivals) else None

    def until(self, now_s: float) -> Iterator[Arrival]:
        """Those that have arrived."""
        while self._at < len(self._arrivals) and self._arrivals[self._at].at_s <= now_s:
            self._at += 1
            yield self._arrivals[self._at - 1]

    def ended(self, now_s: float) -> None:
        """Nothing follows from it."""


class Users:
    """A closed loop: each of `n` users sends the next of `requests` `think_s` after the last one has ended."""

    def __init__(self, n: int, requests: Iterable[Arrival], think_s: float = 0.0) -> None:
        self._left, self._think_s = iter(requests), think_s
        self._due = [0.0] * n
        heapify(self._due)
        self._next = next(self._left, None)

    @property
    def next_s(self) -> float | None:
        """When the next one is sent."""
        return self._due[0] if self._due and self._next is not None else None

    def until(self, now_s: float) -> Iterator[Arrival]:
        """Those that have been sent."""
        while self._due and self._due[0] <= now_s and self._next is not None:
            at_s, one = heappop(self._due), self._next
            self._next = next(self._left, None)
            yield Arrival(at_s, one.prompt_tokens, one.new_tokens, one.prefix, one.common_tokens)

    def ended(self, now_s: float) -> None:
        """A user thinks, then sends again."""
        heappush(self._due, now_s + self._think_s)


def poisson(requests: Iterable[Arrival], rate: float, seed: int) -> list[Arrival]:
    """`requests` at independent times, `rate` per second on average. The gaps for one seed are the same at every rate,
    scaled."""
    random, at_s = Random(f"gaps {seed}"), 0.0
    timed = []
    for one in requests:
        at_s += -log(1.0 - random.random()) / rate
        timed.append(_at(one, at_s))
    return timed


def constant(requests: Iterable[Arrival], rate: float) -> list[Arrival]:
    """`requests` at equal intervals, the first one at once."""
    return [_at(one, i / rate) for i, one in enumerate(requests)]


def _at(one: Arrival, at_s: float) -> Arrival:
    return Arrival(at_s, one.prompt_tokens, one.new_tokens, one.prefix, one.common_tokens)
