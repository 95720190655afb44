"""What did users see, and what was in use? Percentiles, rates and means of a run, and its development over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor

from calc.simulate.run import Run
from calc.simulate.scheduler import Request

NEEDED = {50: 1, 90: 10, 95: 20, 99: 100}
"""The reported percentiles, and the number of requests that each needs to differ from the maximum."""
POINTS = 120
"""Number of points over time."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Times of many requests, sorted."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return sum(self.values) / len(self.values)

    def percentile(self, percent: float) -> float:
        """Between the two nearest values in a straight line, as numpy does.

        >>> Spread((1.0, 2.0, 4.0)).percentile(50), Spread((1.0, 2.0, 4.0)).percentile(75)
        (2.0, 3.0)
        """
        place = (len(self.values) - 1) * percent / 100
        at = min(floor(place), len(self.values) - 2) if len(self.values) > 1 else 0
        after = self.values[min(at + 1, len(self.values) - 1)]
        return self.values[at] + (after - self.values[at]) * (place - at)

    def said(self, percent: int) -> float | None:
        """The percentile; None if there are too few requests."""
        return self.percentile(percent) if len(self.values) >= NEEDED.get(percent, 1) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Means over equal intervals: the end of each, waiting and running requests, used share of the cache."""

    time_s: tuple[float, ...]
    waiting: tuple[float, ...]
    running: tuple[float, ...]
    cache: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run in numbers. Times are None if no request has them (a single token has no time per token)."""

    requests: int
    window_s: float
    ttft: Spread | None
    tpot: Spread | None
    e2e: Spread | None
    wait: Spread | None
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    preemptions: int
    good: int | None
    busy_share: float
    steps: int
    course: Course = field(repr=False)
    cache_most: float = 0.0
    waiting_most: int = 0

    @property
    def requests_per_s(self) -> float:
        """Requests that ended per second, from the first arrival to the last token."""
        return self.requests / self.window_s if self.window_s else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens made per second."""
        return self.output_tokens / self.window_s if self.window_s else 0.0

    @property
    def goodput_per_s(self) -> float | None:
        """Requests per second that met every limit; None without limits."""
        return None if self.good is None or not self.window_s else self.good / self.window_s

    @property
    def goodput_share(self) -> float | None:
        """Their share of all requests."""
        return None if self.good is None or not self.requests else self.good / self.requests

    def spread(self, name: str) -> Spread | None:
        """The times of a limit's name: ttft, tpot, e2e."""
        return {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e}[name]

    def keeps(self, limits: Mapping[str, float], percent: float) -> bool:
        """Whether that percentile meets every limit."""
        return not self.broken(limits, percent)

    def broken(self, limits: Mapping[str, float], percent: float) -> list[str]:
        """The limits that this percentile exceeds."""
        spreads = {name: self.spread(name) for name in limits}
        return [name for name, seen in spreads.items() if seen is not None and seen.percentile(percent) > limits[name]]


def outcome(run: Run, limits: Mapping[str, float] | None = None, *, warm: int = 0) -> Outcome:
    """The numbers of a run. The first `warm` requests are left out of times and rates: they met an empty server."""
    seen = run.requests[warm:]
    start_s = min((one.arrival_s for one in seen), default=0.0)
    ends_s = max((one.end_s for one in seen), default=0.0)
    return Outcome(
        requests=len(seen),
        window_s=ends_s - start_s,
        ttft=_spread(one.first_s - one.arrival_s for one in seen),
        tpot=_spread(tpot_s(one) for one in seen if one.new_tokens > 1),
        e2e=_spread(one.end_s - one.arrival_s for one in seen),
        wait=_spread(one.waits[0][1] - one.arrival_s for one in seen),
        output_tokens=sum(one.new_tokens for one in seen),
        prompt_tokens=sum(one.prompt_tokens for one in seen),
        cached_tokens=sum(one.cached_tokens for one in seen),
        computed_tokens=run.tokens,
        recomputed_tokens=sum(one.recomputed_tokens for one in seen),
        preemptions=sum(one.preemptions for one in seen),
        good=None if limits is None else sum(_is_good(one, limits) for one in seen),
        busy_share=run.busy_s / run.end_s if run.end_s else 0.0,
        steps=run.steps,
        course=_course(run),
        waiting_most=max((n for _, _, n, _ in _counted(_waits(run))), default=0),
        cache_most=max((max(p.held_before, p.held_after) for p in run.pieces), default=0) / run.server.blocks,
    )


def tpot_s(request: Request) -> float:
    """Seconds per token after the first."""
    return (request.end_s - request.first_s) / (request.new_tokens - 1)


def _is_good(request: Request, limits: Mapping[str, float]) -> bool:
    times = {"ttft": request.first_s - request.arrival_s, "e2e": request.end_s - request.arrival_s}
    times["tpot"] = tpot_s(request) if request.new_tokens > 1 else 0.0
    return all(times[name] <= most for name, most in limits.items())


def _spread(values: Iterable[float]) -> Spread | None:
    found = tuple(sorted(values))
    return Spread(found) if found else None


# The course over time


def _course(run: Run) -> Course:
    end_s = run.end_s
    present = [(one.arrival_s, one.end_s) for one in run.requests]
    waiting = _means(_counted(_waits(run)), end_s)
    there = _means(_counted(present), end_s)
    held = _means(((p.start_s, p.end_s, p.held_before, p.held_after) for p in run.pieces), end_s)
    return Course(
        time_s=tuple(end_s * (i + 1) / POINTS for i in range(POINTS)),
        waiting=tuple(waiting),
        running=tuple(max(0.0, all_ - wait) for all_, wait in zip(there, waiting, strict=True)),
        cache=tuple(blocks / run.server.blocks for blocks in held),
    )


def _waits(run: Run) -> list[tuple[float, float]]:
    return [wait for one in run.requests for wait in one.waits]


def _counted(spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float, int, int]]:
    """How many of `spans` hold, piece by piece."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    n, since = 0, 0.0
    for at, by in changes:
        if at > since:
            yield since, at, n, n
        n, since = n + by, at


def _means(pieces: Iterable[tuple[float, float, float, float]], end_s: float) -> list[float]:
    """Means over `POINTS` equal stretches of pieces (start, end, value at both), straight in between."""
    sums = [0.0] * POINTS
    if not end_s:
        return sums
    width = end_s / POINTS
    for start, end, before, after in pieces:
        if end <= start or not (before or after):
            continue
        slope = (after - before) / (end - start)
        for i in range(min(POINTS - 1, int(start / width)), min(POINTS - 1, int(end / width)) + 1):
            a, b = max(start, i * width), min(end, (i + 1) * width)
            if b > a:
                sums[i] += (b - a) * (before + slope * ((a + b) / 2 - start))
    return [total / width for total in sums]
