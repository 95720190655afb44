"""Plans that meet latency limits: the largest batch, the TP degree, the fewest devices, the choice of device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from calc.errors import CalcError
from calc.speed.asked import Asked, Load
from calc.speed.estimate import MOST_BATCH, Estimate, estimate
from calc.speed.room import room_of

if TYPE_CHECKING:
    from calc.model.study import DeviceSpec, Study

TPS = (1, 2, 4, 8, 16)
"""TP degrees in common use."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One replica of a model on `tp` devices, with the largest number of clients that it serves within the limits."""

    device: str
    tp: int
    answer: Estimate

    @property
    def batch(self) -> int:
        """Concurrent clients."""
        return int(self.answer.batch)

    @property
    def requests_per_s(self) -> float:
        """Requests finished per second, expected."""
        assert self.answer.e2e is not None
        return float(self.answer.batch / self.answer.e2e.mid)

    @property
    def tokens_per_s_per_device(self) -> float:
        """Output tokens per second and device, expected."""
        assert self.answer.output_rate is not None
        return float(self.answer.output_rate.mid / self.tp)

    def replicas(self, rate: float) -> int:
        """How many replicas serve `rate` requests per second."""
        return ceil(rate / self.requests_per_s)

    def devices(self, rate: float) -> int:
        """Devices of all those replicas."""
        return self.replicas(rate) * self.tp


@dataclass(frozen=True, slots=True)
class Broken:
    """A limit that is not met, by name, and the expected seconds."""

    name: str
    expected_s: float


def broken_limits(answer: Estimate, limits: Mapping[str, float]) -> tuple[Broken, ...]:
    """The limits (seconds by name) that the expected times exceed; empty if a plan has no times."""
    spans = {"ttft": answer.ttft, "tpot": answer.tpot, "e2e": answer.e2e}
    known = ((name, most_s, spans[name]) for name, most_s in limits.items())
    return tuple(Broken(name, span.mid) for name, most_s, span in known if span and span.mid > most_s)


def keeps(answer: Estimate, limits: Mapping[str, float]) -> bool:
    """Whether the expected times meet every limit (seconds by name)."""
    return answer.fits and not broken_limits(answer, limits)


def largest_plan(study: Study, asked: Asked, limits: Mapping[str, float]) -> Plan | None:
    """The most closed-loop clients that one replica serves within `limits`; None if it cannot serve even one.

    Times grow with the number of clients, so a binary search finds the largest. Raises SpecError.
    """
    room = room_of(study, replace(asked, load=Load.CLOSED, count=1))

    def tried(n: int) -> Estimate:
        return estimate(study, replace(asked, load=Load.CLOSED, count=n), room)

    low, high, best = 0, min(room.fitting, MOST_BATCH) + 1, None
    while high - low > 1:
        middle = (low + high) // 2
        answer = tried(middle)
        if keeps(answer, limits):
            low, best = middle, answer
        else:
            high = middle
    return None if best is None else Plan(study.device.name, asked.tp, best)


def plans_by_tp(study: Study, asked: Asked, limits: Mapping[str, float], most: int) -> list[Plan]:
    """The largest plan for each tensor parallelism up to `most` that the model and the limits allow."""
    found = []
    for tp in TPS:
        if tp <= most and (plan := _or_none(study, replace(asked, tp=tp), limits)) is not None:
            found.append(plan)
    return found


def fewest(plans: Sequence[Plan], rate: float) -> Plan | None:
    """The one of `plans` that serves `rate` requests per second with the fewest devices, then the smallest TP."""
    return min(plans, key=lambda plan: (plan.devices(rate), plan.tp), default=None)


def plans_by_device(
    study: Study, asked: Asked, limits: Mapping[str, float], devices: Sequence[DeviceSpec]
) -> Iterator[Plan]:
    """The largest plan within the limits on each of `devices`."""
    for device in devices:
        plan = _or_none(replace(study, device=device), asked, limits)
        if plan is not None:
            yield plan


def _or_none(study: Study, asked: Asked, limits: Mapping[str, float]) -> Plan | None:
    """The largest plan; None also if the model cannot be split that way or device figures are missing."""
    try:
        return largest_plan(study, asked, limits)
    except CalcError:
        return None
