"""How does a server handle a load? One server, one list of requests, and the ways in which they can arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle, islice

from calc.simulate.capacity import Aim, Found, full_load, highest_rate, most_users
from calc.simulate.run import simulate
from calc.simulate.scheduler import Server
from calc.simulate.step_times import Chunk, Times
from calc.simulate.summary import Outcome, outcome
from calc.simulate.workload import Arrival, Listed, Users, constant, poisson

WARM_ROUNDS, USER_ROUNDS = 2, 8
"""Requests per user in a closed loop: those left out at the start, when all users arrive at once, and all."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Step times multiplied by `factor`."""

    times: Times
    factor: float

    def step_s(self, decoding: int, context: float, chunks: Sequence[Chunk]) -> float:
        """Seconds of a step."""
        return self.factor * self.times.step_s(decoding, context, chunks)

    def straight_until(self, context: float) -> float:
        """As before."""
        return self.times.straight_until(context)


@dataclass(frozen=True, kw_only=True)
class Load:
    """`requests` as drawn or listed. At a rate they arrive in that order, `even`ly or as Poisson; users pause for
    `think_s` before the next one. `limits` are in seconds, by name.
    """

    server: Server
    times: Times
    requests: Sequence[Arrival]
    seed: int = 0
    even: bool = False
    think_s: float = 0.0
    limits: Mapping[str, float] | None = None
    _known: dict[float, Outcome] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def full_load(self) -> float:
        """Requests per second that the server completes if the queue is never empty."""
        return full_load(self.requests, self.server, self.times)

    def at_rate(self, rate: float) -> Outcome:
        """The requests at a rate per second."""
        known = self._known.get(rate)
        if known is None:
            arrivals = constant(self.requests, rate) if self.even else poisson(self.requests, rate, self.seed)
            known = self._known[rate] = outcome(simulate(Listed(arrivals), self.server, self.times), self.limits)
        return known

    def with_users(self, users: int) -> Outcome:
        """A number of users in a closed loop, without the requests at its start."""
        n = max(len(self.requests), USER_ROUNDS * users)
        source = Users(users, islice(cycle(self.requests), n), self.think_s)
        run = simulate(source, self.server, self.times)
        return outcome(run, self.limits, warm=min(WARM_ROUNDS * users, n // 2))

    def as_listed(self) -> Outcome:
        """The requests at their own times."""
        return outcome(simulate(Listed(self.requests), self.server, self.times), self.limits)

    def slowed(self, factor: float) -> Load:
        """The same load on a server whose steps take `factor` times as long."""
        return replace(self, times=Scaled(self.times, factor), _known={})

    def highest_rate(self, aim: Aim) -> Found:
        """The highest rate that meets `aim`."""
        return highest_rate(self.at_rate, self.full_load, aim)

    def most_users(self, aim: Aim) -> Found:
        """The most users that meet `aim`."""
        return most_users(self.with_users, aim)
