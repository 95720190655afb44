"""Rates from timestamps, checked by hand at n = 0, 1, 2, 10 and against the statistics module."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.measure.timing import Timing, latencies_s, median, percentile, timing, tokens_per_s, tpot_s, ttft_s

S = 1_000_000_000
START = 7 * S  # a clock that does not start at zero


def test_no_token_has_no_rates() -> None:
    assert timing(START, ()) == Timing(
        n_tokens=0,
        ttft_s=None,
        tpot_s=None,
        tpot_p50_s=None,
        tpot_p95_s=None,
        tokens_per_s=None,
        total_s=None,
    )


def test_one_token_has_a_ttft_only() -> None:
    assert timing(START, (START + S // 4,)) == Timing(
        n_tokens=1,
        ttft_s=0.25,
        tpot_s=None,
        tpot_p50_s=None,
        tpot_p95_s=None,
        tokens_per_s=None,
        total_s=0.25,
    )


def test_two_tokens_are_one_interval() -> None:
    assert timing(START, (START + 3 * S, START + 5 * S)) == Timing(
        n_tokens=2, ttft_s=3.0, tpot_s=2.0, tpot_p50_s=2.0, tpot_p95_s=2.0, tokens_per_s=0.5, total_s=5.0
    )


def test_ten_tokens_are_nine_intervals() -> None:
    """First token after 1 s, then intervals of 1..9 s: a prefill that counted as decoding would show."""
    times = [START + S]
    for seconds in range(1, 10):
        times.append(times[-1] + seconds * S)
    rates = timing(START, times)
    assert rates.ttft_s == 1.0
    assert rates.tpot_s == 45 / 9
    assert rates.tokens_per_s == 9 / 45
    assert rates.total_s == 46.0
    assert rates.tpot_p50_s == 5.0
    assert rates.tpot_p95_s == pytest.approx(8.6)  # rank 0.95 x 8 = 7.6: from 8 to 9
    assert latencies_s(times) == [float(n) for n in range(1, 10)]


def test_tokens_within_one_tick_have_no_rate() -> None:
    assert tokens_per_s((START, START, START)) is None
    assert tpot_s((START, START, START)) == 0.0


def test_nanoseconds_are_exact_far_from_zero() -> None:
    far = 10**18
    assert ttft_s(far, (far + 1,)) == 1e-9
    assert tpot_s((far, far + 3)) == 3e-9


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=30), st.integers(0, 10**15))
def test_rates_agree_with_each_other(steps: list[int], start: int) -> None:
    times = [start]
    for step in steps:
        times.append(times[-1] + step)
    rates = timing(start - 5, times)
    assert rates.tpot_s is not None
    assert rates.tokens_per_s is not None
    assert rates.tpot_s * rates.tokens_per_s == pytest.approx(1)
    assert rates.tpot_s == pytest.approx(statistics.fmean(latencies_s(times)))
    assert min(latencies_s(times)) * (1 - 1e-9) <= rates.tpot_s <= max(latencies_s(times)) * (1 + 1e-9)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=40))
def test_percentiles_are_those_of_the_statistics_module(values: list[float]) -> None:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    assert percentile(values, 95) == pytest.approx(cuts[18], rel=1e-9, abs=1e-6)
    assert percentile(values, 50) == pytest.approx(statistics.median(values), rel=1e-9, abs=1e-6)
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)


def test_percentile_of_one_and_of_nothing() -> None:
    assert percentile([3.0], 95) == 3.0
    assert percentile([], 50) is None
    with pytest.raises(ValueError, match="no values"):
        median([])
