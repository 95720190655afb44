"""Things to time that take turns, so that a machine that slows down slows all of them alike. No torch here."""

import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from engine.errors import Stopped
from engine.measure.timing import median, percentile

Key = TypeVar("Key", bound=Hashable)
MOST_AGAIN = 10
QUIET_PERCENT = 20


@dataclass(slots=True)
class Turns(Generic[Key]):
    """Runs of several things and the seconds that each of them took, round by round.

    The first round warms up and does not count. `clock` gives seconds: those on the wall, or those that this thread had
    a core. What takes less than `each_s` is run again in
    the same round, `MOST_AGAIN` times at most: another process takes the core for milliseconds, now and then.
    """

    runs: Mapping[Key, Callable[[], object]]
    clock: Callable[[], float] = time.perf_counter
    seconds: dict[Key, list[float]] = field(default_factory=dict)
    warm: bool = False
    each_s: float = 0.0
    n_rounds: int = 0
    """Rounds that count."""
    wall_s: float = 0.0
    """On the wall, of all runs that count."""

    def round(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Run each of them once. Raises Stopped, which is asked before each."""
        for key, run in self.runs.items():
            if should_stop():
                raise Stopped
            self._time(key, run)
        self.n_rounds += self.warm
        self.warm = True

    def _time(self, key: Key, run: Callable[[], object]) -> None:
        spent_s = 0.0
        for _ in range(MOST_AGAIN if self.warm else 1):
            began, on_the_wall = self.clock(), time.perf_counter()
            run()
            if not self.warm:
                return
            self.seconds.setdefault(key, []).append(self.clock() - began)
            self.wall_s += time.perf_counter() - on_the_wall
            spent_s += self.seconds[key][-1]
            if spent_s >= self.each_s:
                return

    def rounds(
        self, most: int, budget_s: float, should_stop: Callable[[], bool] = lambda: False, *, least: int = 2
    ) -> Generator[int, None, None]:
        """A warm-up and up to `most` rounds, fewer (but `least`) once `budget_s` is spent; yields each round's number.

        Raises Stopped.
        """
        began = self.clock()
        for number in range(1 + most):
            if number > least and self.clock() - began > budget_s:
                return
            yield number
            self.round(should_stop)

    def median_s(self, key: Key) -> float:
        """The median time of one of them."""
        return median(self.seconds[key])

    def quiet_s(self, key: Key) -> float:
        """The time of one of them when nothing else runs: the fifth of its runs that were fastest end there.

        Other processes only ever add time.
        """
        low = percentile(self.seconds[key], QUIET_PERCENT)
        assert low is not None
        return low

    @property
    def slowdown(self) -> float:
        """How many times as long everything took in all as it would have on a quiet machine; 1 of nothing."""
        quiet_s = sum(len(times) * self.quiet_s(key) for key, times in self.seconds.items())
        return max(1.0, self.wall_s / quiet_s) if quiet_s else 1.0

    @property
    def spread(self) -> float:
        """How far times of the same thing lie apart: (greatest - least) / median, the median over all things."""
        return spread_of(list(self.seconds.values()))


def spread_of(times: Sequence[Sequence[float]]) -> float:
    """(greatest - least) / median of each of `times`, and of these the median; 0 of nothing.

    >>> spread_of([[1.0, 2.0, 3.0], [5.0, 5.0]])
    0.5
    """
    shares = [(max(each) - min(each)) / median(each) for each in times if each and median(each) > 0]
    return median(shares) if shares else 0.0
