"""Rates from raw nanosecond timestamps: the one place where they are made. No torch, no numpy.

Let the clock start at s and the n tokens be ready at t[0] <= ... <= t[n-1] (``time.perf_counter_ns``):

    TTFT      t[0] - s                         prefill, sampling and all
    TPOT      (t[n-1] - t[0]) / (n - 1)        the first token is excluded: n tokens end n - 1 intervals
    tokens/s  (n - 1) / (t[n-1] - t[0])        of decoding, again without the first token
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from engine.records import NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Rates of one run of `n_tokens` new tokens. None: too few tokens to say."""

    n_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    tpot_p50_s: float | None
    tpot_p95_s: float | None
    tokens_per_s: float | None
    total_s: float | None


def timing(start_ns: int, token_times_ns: Sequence[int]) -> Timing:
    """Every rate of one run, from the start of its clock and the time of each token."""
    latencies = latencies_s(token_times_ns)
    return Timing(
        n_tokens=len(token_times_ns),
        ttft_s=ttft_s(start_ns, token_times_ns),
        tpot_s=tpot_s(token_times_ns),
        tpot_p50_s=percentile(latencies, 50),
        tpot_p95_s=percentile(latencies, 95),
        tokens_per_s=tokens_per_s(token_times_ns),
        total_s=(token_times_ns[-1] - start_ns) / NS_PER_S if token_times_ns else None,
    )


def ttft_s(start_ns: int, token_times_ns: Sequence[int]) -> float | None:
    """Time to first token, in seconds; None without a token."""
    return (token_times_ns[0] - start_ns) / NS_PER_S if token_times_ns else None


def tpot_s(token_times_ns: Sequence[int]) -> float | None:
    """Mean time per output token after the first, in seconds; None below two tokens.

    >>> tpot_s([5_000_000_000, 6_000_000_000, 9_000_000_000])
    2.0
    """
    if len(token_times_ns) < 2:
        return None
    return (token_times_ns[-1] - token_times_ns[0]) / (len(token_times_ns) - 1) / NS_PER_S


def tokens_per_s(token_times_ns: Sequence[int]) -> float | None:
    """Tokens decoded per second, the first token excluded; None below two tokens or within one clock tick.

    >>> tokens_per_s([5_000_000_000, 6_000_000_000, 9_000_000_000])
    0.5
    """
    if len(token_times_ns) < 2 or token_times_ns[-1] == token_times_ns[0]:
        return None
    return (len(token_times_ns) - 1) * NS_PER_S / (token_times_ns[-1] - token_times_ns[0])


def latencies_s(token_times_ns: Sequence[int]) -> list[float]:
    """Time between each token and the one before it, in seconds: n - 1 values."""
    return [(later - earlier) / NS_PER_S for earlier, later in pairwise(token_times_ns)]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value below which `percent` % of `values` lie, linear between neighbours; None of nothing.

    The same definition as numpy's default: rank (n - 1) p / 100 in the sorted values.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 50)
    2.5
    """
    if not values:
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def median(values: Sequence[float]) -> float:
    """The middle of `values` (mean of the middle two of an even count).

    >>> median([3.0, 1.0, 2.0])
    2.0
    """
    middle = percentile(values, 50)
    if middle is None:
        raise ValueError("the median of no values")
    return middle
