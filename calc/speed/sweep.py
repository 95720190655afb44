"""Times for many devices, batches and formats: each pass is computed once per format, batches are an array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from calc.errors import SpecError
from calc.speed.asked import Asked, Load
from calc.speed.estimate import MOST_BATCH, Estimate, Room, at_once, estimate, shortage
from calc.speed.room import room_of
from calc.speed.spans import Span
from calc.speed.steps import Steps

if TYPE_CHECKING:
    from calc.model.study import DeviceSpec, Study
    from calc.speed.passes import PassTime, Worked

NO_ROOM = Room(0, 0)
LIMITS = ("overhead", "arithmetic", "memory bandwidth", "communication")


@dataclass(frozen=True, slots=True)
class Block:
    """All batches on one device in one format. Each time in `answer` is an array, or None if no batch has it."""

    study: Study
    asked: Sequence[Asked]
    room: Room = NO_ROOM
    answer: Estimate | None = None
    problem: str | None = None
    others: dict[bool, Estimate] = field(default_factory=dict)

    def points(self) -> Iterator[Estimate]:
        """The batches one by one. Clients that do not fit have to wait; a single client never waits."""
        limits = [] if self.answer is None or self.answer.decode is None else limited(self.answer.decode)
        closed = self.asked[0].load is Load.CLOSED
        fitting = min(self.room.fitting, MOST_BATCH) if closed else self.room.fitting
        for i, asked in enumerate(self.asked):
            batch = asked.count or 1
            if self.answer is None or (batch > fitting and not closed):
                yield Estimate(asked=asked, batch=0, fits=False, problem=self.problem or shortage(asked, fitting))
            elif closed and (batch == 1 or batch > fitting):
                yield replace(self._alike(asked), asked=asked)
            else:
                yield _picked(asked, self.answer, i, limits[i])

    def _alike(self, asked: Asked) -> Estimate:
        """The estimate for one client, or for any number of which some wait; computed once."""
        alone = asked.count == 1
        if alone not in self.others:
            self.others[alone] = estimate(self.study, asked, self.room)
        return self.others[alone]


def sweep(studies: Sequence[Study], devices: Sequence[DeviceSpec], asked: Asked, batches: Sequence[int]) -> list[Block]:
    """Every study (a model with its formats) on every device: static batches, or numbers of clients.

    Raises SpecError at maximum load, which determines its own batch.
    """
    if asked.load is Load.MAX:
        raise SpecError("load", "maximum load has a single batch, which is what fits: leave out the batches")
    counts, each = np.asarray(batches, dtype=float), [replace(asked, count=batch) for batch in batches]
    blocks = []
    for study in studies:
        done: dict[Any, Worked] = {}
        blocks += [_block(replace(study, device=device), each, counts, done) for device in devices]
    return blocks


def _block(study: Study, each: Sequence[Asked], counts: np.ndarray[Any, Any], done: dict[Any, Worked]) -> Block:
    one = replace(each[0], count=1)
    try:
        room = room_of(study, one)
        if room.refusal or not room.fitting:
            return Block(study, each, problem=estimate(study, one, room).problem)
        steps = Steps(study=study, asked=replace(one, count=None), done=done)
        return Block(study, each, room, at_once(steps, counts))
    except SpecError as error:
        return Block(study, each, problem=str(error))


def limited(time: PassTime) -> list[str]:
    """Per batch, the bottleneck of the operators that take most of the time."""
    n = np.size(time.expected_s)
    shares = {name: np.zeros(n) for name in LIMITS}
    for one in time.operators:
        start, compute, memory = one.start_s, one.compute_s, one.memory_s
        if one.limited_by_link:
            shares["communication"] += one.time_s
            continue
        starts = np.greater_equal(start, compute) & np.greater_equal(start, memory)
        computes = ~starts & np.greater_equal(compute, memory)
        shares["overhead"] += np.where(starts, one.time_s, 0.0)
        shares["arithmetic"] += np.where(computes, one.time_s, 0.0)
        shares["memory bandwidth"] += np.where(~starts & ~computes, one.time_s, 0.0)
    return [LIMITS[i] for i in np.argmax(np.stack([shares[name] for name in LIMITS]), axis=0)]


def _picked(asked: Asked, answer: Estimate, i: int, limit: str) -> Estimate:
    """The estimate of batch `i`."""

    def at(span: Span | None) -> Span | None:
        if span is None:
            return None
        values = (span.bound, span.low, span.mid, span.high)
        return Span(*(float(value[i]) if np.ndim(value) else float(value) for value in values))

    return Estimate(
        asked=asked,
        batch=asked.count or 1,
        fits=True,
        ttft=at(answer.ttft),
        tpot=at(answer.tpot),
        e2e=at(answer.e2e),
        output_rate=at(answer.output_rate),
        limit=limit,
    )
