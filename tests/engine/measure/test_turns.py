"""Taking turns, with a clock that is fed in: what counts, when it ends, and how spread is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engine.errors import Stopped
from engine.measure.turns import Turns, spread_of


def clock_of(*seconds: float) -> Callable[[], float]:
    """A clock that has moved by each of `seconds` in turn, and then stands."""
    now = 0.0

    def times() -> Iterator[float]:
        nonlocal now
        yield now
        for step in seconds:
            now += step
            yield now
        while True:
            yield now

    return times().__next__


def test_the_first_round_warms_up_and_medians_are_of_the_others() -> None:
    order: list[str] = []
    # Two looks at the clock for each run that counts, one for each of the warm-up.
    turns = Turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, clock=clock_of(*[1.0] * 20))
    for _ in range(4):
        turns.round()
    assert order == ["a", "b"] * 4
    assert turns.n_rounds == 3
    assert turns.median_s("a") == turns.median_s("b") == 1.0
    assert turns.spread == 0.0


def test_rounds_end_with_the_budget_but_not_before_the_least() -> None:
    slow = Turns({"a": lambda: None}, clock=clock_of(*[10.0] * 40))
    assert list(slow.rounds(5, budget_s=1.0)) == [0, 1, 2]
    quick = Turns({"a": lambda: None}, clock=clock_of(*[0.001] * 40))
    assert list(quick.rounds(5, budget_s=1.0)) == [0, 1, 2, 3, 4, 5]
    assert quick.n_rounds == 5


def test_a_stop_is_heard_before_the_next_run() -> None:
    ran: list[int] = []
    turns = Turns({1: lambda: ran.append(1), 2: lambda: ran.append(2)})
    with pytest.raises(Stopped):
        turns.round(lambda: bool(ran))
    assert ran == [1]


def test_spread_by_hand() -> None:
    assert spread_of([[1.0, 2.0, 3.0], [4.0, 5.0, 4.0]]) == pytest.approx((1.0 + 0.25) / 2)
    assert spread_of([]) == 0.0
