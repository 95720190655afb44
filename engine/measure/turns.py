"""Things to time that take turns, so that a machine that slows down slows all of them alike. No torch here."""

import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from engine.errors import Stopped
from engine.measure.timing import median

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class Turns(Generic[Key]):
    """Runs of several things and the seconds that each of them took, round by round.

    The first round warms up and does not count. `clock` gives seconds.
    """

    runs: Mapping[Key, Callable[[], object]]
    clock: Callable[[], float] = time.perf_counter
    seconds: dict[Key, list[float]] = field(default_factory=dict)
    warm: bool = False

    def round(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Run each of them once. Raises Stopped, which is asked before each."""
        for key, run in self.runs.items():
            if should_stop():
                raise Stopped
            began = self.clock()
            run()
            if self.warm:
                self.seconds.setdefault(key, []).append(self.clock() - began)
        self.warm = True

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

    @property
    def n_rounds(self) -> int:
        """Rounds that count."""
        return max(map(len, self.seconds.values()), default=0)

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
