"""What is the maximum? The rate at full load, and the highest rate and most users within the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from calc.simulate.run import Run, simulate
from calc.simulate.scheduler import Server
from calc.simulate.step_times import Times
from calc.simulate.summary import Outcome
from calc.simulate.workload import Arrival, Listed

FULL_ROUNDS, MOST_FULL = 6, 4000
"""Requests at full load: a multiple of those that fit at once, and the maximum."""
STEADY = (0.25, 0.75)
"""The part of the tokens that counts at full load: after the server has filled up, before it runs empty."""
LOWEST_SHARE, NEAR = 1 / 1024, 1.01
"""The search starts at this fraction of the full load and ends when the passing and the failing rate are close."""
MOST_USERS = 2048


def full_load(requests: Sequence[Arrival], server: Server, times: Times) -> float:
    """Requests per second if the queue is never empty: no rate can exceed this for long."""
    n = min(MOST_FULL, max(len(requests), FULL_ROUNDS * at_once(requests, server)))
    load = [replace(one, at_s=0.0) for one in islice(cycle(requests), n)]
    made = sum(one.new_tokens for one in load)
    return steady_tokens_per_s(simulate(Listed(load), server, times)) * n / made


def at_once(requests: Sequence[Arrival], server: Server) -> int:
    """How many of `requests` the server holds at once, at their full length."""
    blocks = sum(server.blocks_of(one.longest) for one in requests) / len(requests)
    return min(server.sequences, max(1, int(server.blocks / blocks)))


def steady_tokens_per_s(run: Run) -> float:
    """Tokens generated per second in the middle of a run."""
    total = sum(piece.made for piece in run.pieces)
    first, last = (share * total for share in STEADY)
    so_far = made = spent_s = 0.0
    for piece in run.pieces:
        so_far += piece.made
        if first < so_far <= last:
            made += piece.made
            spent_s += piece.end_s - piece.start_s
    return made / spent_s if spent_s else total / run.end_s


@dataclass(frozen=True, slots=True)
class Found:
    """The highest value that meets the limits (None: none), and the lowest tried value that does not (None: none
    found).

    `broken` are the limits that the latter exceeds.
    """

    value: float | None
    outcome: Outcome | None
    above: float | None
    above_outcome: Outcome | None
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """Limits in seconds by name, and the percentile of requests that must meet them."""

    limits: Mapping[str, float]
    percent: float = 99.0


def highest_rate(tried: Callable[[float], Outcome], full: float, aim: Aim) -> Found:
    """The highest rate that meets `aim`, up to the full load, within 1 %."""

    def ok(seen: Outcome) -> bool:
        return seen.keeps(aim.limits, aim.percent)

    low, high = full * LOWEST_SHARE, full
    at_low, at_high = tried(low), tried(high)
    if not ok(at_low):
        return _found(None, None, low, at_low, aim)
    if ok(at_high):
        return _found(high, at_high, None, None, aim)
    while high / low > NEAR:
        middle = (low * high) ** 0.5
        seen = tried(middle)
        if ok(seen):
            low, at_low = middle, seen
        else:
            high, at_high = middle, seen
    return _found(low, at_low, high, at_high, aim)


def most_users(tried: Callable[[int], Outcome], aim: Aim, most: int = MOST_USERS) -> Found:
    """The most users in a closed loop that meet `aim`."""

    def ok(seen: Outcome) -> bool:
        return seen.keeps(aim.limits, aim.percent)

    low, at_low, high = 0, None, 1
    at_high = tried(high)
    while ok(at_high):
        low, at_low = high, at_high
        if high >= most:
            return _found(low, at_low, None, None, aim)
        high = min(most, high * 2)
        at_high = tried(high)
    while high - low > 1:
        middle = (low + high) // 2
        seen = tried(middle)
        if ok(seen):
            low, at_low = middle, seen
        else:
            high, at_high = middle, seen
    return _found(low or None, at_low, high, at_high, aim)


def _found(
    value: float | None, at_value: Outcome | None, above: float | None, at_above: Outcome | None, aim: Aim
) -> Found:
    broken = () if at_above is None else tuple(at_above.broken(aim.limits, aim.percent))
    return Found(value, at_value, above, at_above, broken)
