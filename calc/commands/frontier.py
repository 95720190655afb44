"""Estimates for several batch sizes side by side: the limits that each exceeds, and its cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from calc.model.study import Study
from calc.speed.asked import Asked, Load
from calc.speed.estimate import Estimate, estimate
from calc.speed.plans import Broken, broken_limits
from calc.speed.room import room_of


@dataclass(frozen=True, slots=True)
class Row:
    """A point of the frontier: the estimate of a batch, the limits it exceeds (None: no limits given), its cost.

    `cost`: price per million output tokens; None if no price is given or the batch does not fit.
    """

    batch: int
    answer: Estimate
    broken: tuple[Broken, ...] | None = None
    cost: float | None = None

    @property
    def meets_limits(self) -> bool | None:
        """Whether the expected times meet every limit."""
        return None if self.broken is None else self.answer.fits and not self.broken


def frontier(
    study: Study,
    asked: Asked,
    batches: Sequence[int],
    *,
    limits: Mapping[str, float] | None = None,
    price: float | None = None,
) -> Iterator[Row]:
    """One row per batch size or number of clients. At maximum load the rows are static batches. Raises SpecError."""
    load = Load.STATIC if asked.load is Load.MAX else asked.load
    each = [replace(asked, load=load, count=n) for n in batches]
    room = room_of(study, each[0]) if each else None
    for one in each:
        assert room is not None
        yield judged(estimate(study, one, room), limits, price)


def judged(answer: Estimate, limits: Mapping[str, float] | None = None, price: float | None = None) -> Row:
    """`answer` with the limits that it exceeds, and its cost at `price` per device and hour."""
    broken = None if limits is None else broken_limits(answer, limits)
    batch = answer.asked.count if answer.asked.count is not None else int(answer.batch)
    return Row(batch, answer, broken, cost_per_million(answer, price))


def cost_per_million(answer: Estimate, price: float | None) -> float | None:
    """Cost per million output tokens, at the expected rate and `price` per device and hour."""
    if price is None or answer.output_rate is None:
        return None
    return float(price * answer.asked.devices / 3600 / answer.output_rate.mid * 1e6)
