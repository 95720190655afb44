"""Percentiles, the course over time, goodput, and the search for the most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.simulate.capacity import Aim, highest_rate, most_users
from calc.simulate.run import Piece, Run
from calc.simulate.scheduler import Request, Server
from calc.simulate.summary import POINTS, Outcome, Spread, outcome


def ended(number: int, arrival_s: float, start_s: float, first_s: float, end_s: float, new: int) -> Request:
    one = Request(number, arrival_s, 10, new, None, 0)
    one.waits, one.first_s, one.end_s = [(arrival_s, start_s)], first_s, end_s
    return one


def two() -> Run:
    """Two requests in 12 s: A runs from 0 to 6, B arrives at 2, waits until 6 and runs to 12. 10 of 20 blocks each."""
    run = Run(Server(step_tokens=8, sequences=1, blocks=20))
    run.requests = [ended(0, 0.0, 0.0, 1.0, 6.0, 6), ended(1, 2.0, 6.0, 8.0, 12.0, 5)]
    run.pieces = [Piece(0.0, 6.0, 0, 10, 6), Piece(6.0, 12.0, 10, 10, 5)]
    return run


def test_times_and_rates_by_hand() -> None:
    seen = outcome(two(), {"ttft": 5.0, "tpot": 1.0})
    assert seen.ttft == Spread((1.0, 6.0))
    assert seen.tpot == Spread((1.0, 1.0))
    assert seen.e2e == Spread((6.0, 10.0))
    assert seen.wait == Spread((0.0, 4.0))
    assert (seen.window_s, seen.requests_per_s, seen.output_tokens_per_s) == (12.0, 2 / 12, 11 / 12)
    assert (seen.good, seen.goodput_share, seen.goodput_per_s) == (1, 0.5, 1 / 12)
    assert seen.broken({"ttft": 5.0, "tpot": 1.0}, 99) == ["ttft"]
    assert seen.broken({"ttft": 5.0}, 50) == []


def test_the_course_over_time_by_hand() -> None:
    course = outcome(two()).course
    sixth = POINTS // 6  # 2 s
    assert course.time_s[sixth - 1] == 2.0
    assert course.waiting == pytest.approx([0.0] * sixth + [1.0] * 2 * sixth + [0.0] * 3 * sixth)
    assert course.running == pytest.approx([1.0] * POINTS)
    assert course.cache[3 * sixth :] == pytest.approx([0.5] * 3 * sixth)
    assert sum(course.cache[: 3 * sixth]) / (3 * sixth) == pytest.approx(0.25)  # it fills up evenly
    assert outcome(two()).waiting_most == 1
    assert outcome(two()).cache_most == 0.5


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([0, 1, 50, 90, 99, 100]))
def test_percentiles_are_numpys(values: list[float], percent: int) -> None:
    found = Spread(tuple(sorted(values))).percentile(percent)
    assert found == pytest.approx(float(np.percentile(values, percent)), abs=1e-9)


def test_a_percentile_of_too_few_requests_is_not_said() -> None:
    assert Spread(tuple(float(i) for i in range(99))).said(99) is None
    assert Spread(tuple(float(i) for i in range(100))).said(99) is not None
    assert Spread((3.0,)).said(50) == 3.0


def at(limit: float) -> Callable[[float], Outcome]:
    """A load whose TTFT is its rate, so that `limit` seconds are kept up to a rate of `limit`."""
    empty = outcome(two())
    return lambda rate: replace(empty, ttft=Spread((rate,)))


def test_the_highest_rate_is_found_within_one_percent() -> None:
    aim = Aim(limits={"ttft": 7.3})
    found = highest_rate(at(7.3), 100.0, aim)
    assert found.value is not None
    assert found.above is not None
    assert 7.3 / 1.01 <= found.value <= 7.3 < found.above <= found.value * 1.011
    assert found.broken == ("ttft",)
    assert highest_rate(at(7.3), 5.0, aim).value == 5.0  # the full load
    assert highest_rate(at(7.3), 5.0, aim).above is None
    assert highest_rate(at(7.3), 100_000.0, aim).value is None  # not even a thousandth of the full load


def test_the_most_users_are_found_exactly() -> None:
    aim = Aim(limits={"ttft": 37.0})
    assert most_users(at(37.0), aim).value == 37
    assert most_users(at(37.0), aim).above == 38
    assert most_users(at(37.0), aim, most=20).value == 20
    assert most_users(lambda users: at(0.0)(users + 40.0), aim).value is None
