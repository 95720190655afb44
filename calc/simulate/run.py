"""What happens over time? Scheduler steps one after another, each as long as its work takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, inf
from typing import NamedTuple

from calc.errors import CalcError
from calc.simulate.blocks import Text
from calc.simulate.scheduler import Request, Scheduler, Server, Step
from calc.simulate.step_times import Times
from calc.simulate.workload import Arrival, Source

MOST_PLANS = 5_000_000
"""Maximum number of individually planned steps: minutes of work."""


class Piece(NamedTuple):
    """A step, or several equal ones: the blocks used at its start and end, and the generated tokens."""

    start_s: float
    end_s: float
    held_before: int
    held_after: int
    made: int


@dataclass(slots=True)
class Run:
    """The result: the requests in order of arrival, and the cache use from step to step.

    `pieces` are steps, or several equal consecutive ones. `tokens` counts computed tokens.
    """

    server: Server
    requests: list[Request] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    busy_s: float = 0.0

    @property
    def end_s(self) -> float:
        """When the last request ended."""
        return self.pieces[-1].end_s if self.pieces else 0.0


def simulate(source: Source, server: Server, times: Times) -> Run:
    """Serve all of `source`. Raises CalcError for a request that can never fit, and for too much work."""
    return _Simulation(source, server, times).run()


class _Simulation:
    def __init__(self, source: Source, server: Server, times: Times) -> None:
        self._source, self._times = source, times
        self._scheduler = Scheduler(server)
        self._result = Run(server)
        self._prefixes: dict[str | int, Text] = {}
        self._now_s = 0.0

    def run(self) -> Run:
        """Until nothing is left."""
        scheduler = self._scheduler
        for _ in range(MOST_PLANS):
            self._arrive()
            if not scheduler.running and not scheduler.waiting:
                next_s = self._source.next_s
                if next_s is None:
                    return self._result
                self._now_s = max(self._now_s, next_s)
                continue
            self._step()
        raise CalcError(f"the load needs more than {MOST_PLANS:,} different steps: use fewer requests")

    def _arrive(self) -> None:
        for arrival in self._source.until(self._now_s):
            request = self._request(arrival)
            self._result.requests.append(request)
            self._scheduler.waiting.append(request)

    def _request(self, arrival: Arrival) -> Request:
        server = self._scheduler.server
        if server.blocks_of(arrival.longest - 1) > server.blocks:
            raise CalcError(
                f"a request of {arrival.longest:,} tokens needs {server.blocks_of(arrival.longest - 1):,} cache "
                f"blocks, but the server has only {server.blocks:,}: it would never finish"
            )
        number, prefix = len(self._result.requests), None
        if arrival.prefix is not None and server.caching:
            prefix = self._prefixes.setdefault(arrival.prefix, Text())
        most = min(arrival.common_tokens, arrival.prompt_tokens - 1)  # the last token is computed in any case
        common = 0 if prefix is None else most // server.block_tokens
        return Request(number, arrival.at_s, arrival.prompt_tokens, arrival.new_tokens, prefix, common)

    def _step(self) -> None:
        scheduler, start_s = self._scheduler, self._now_s
        held = scheduler.pool.used
        step = scheduler.plan()
        chunks = [(n, request.computed + n) for request, n in step.chunks]
        repeats, spent_s = 1, self._step_s(step, 0, chunks)
        if step.most_repeats > 1:
            repeats, spent_s = self._repeated(step, spent_s)
        self._now_s = end_s = start_s + spent_s
        first, ended = scheduler.done(step, repeats)
        self._note(step, start_s, first, ended)
        result = self._result
        result.steps += repeats
        result.tokens += repeats * step.tokens
        result.busy_s += spent_s
        result.pieces.append(Piece(start_s, end_s, held, scheduler.pool.used, step.made))

    def _note(self, step: Step, start_s: float, first: list[Request], ended: list[Request]) -> None:
        """Times of the requests that the step admitted, preempted, gave their first token, and ended."""
        for request in step.preempted:
            request.waiting_s = start_s
        for request in step.admitted:
            request.waits.append((request.waiting_s, start_s))
        for request in first:
            request.first_s = self._now_s
        for request in ended:
            request.end_s = self._now_s
            self._source.ended(self._now_s)

    def _step_s(self, step: Step, later: int, chunks: list[tuple[int, int]]) -> float:
        """Seconds of the step, or of the one that comes `later` steps after it."""
        context = step.context_tokens / step.decoding + later if step.decoding else 0.0
        return self._times.step_s(step.decoding, context, chunks)

    def _repeated(self, step: Step, first_s: float) -> tuple[int, float]:
        """How often the step repeats, and for how long: until a request arrives that may be admitted.

        As long as no window fills up, the step time grows by the same amount each time.
        """
        context = step.context_tokens / step.decoding
        most = min(step.most_repeats, max(1, ceil(min(self._times.straight_until(context) - context, 2.0**40))))
        growth_s = self._step_s(step, 1, []) - first_s

        def sum_s(n: int) -> float:
            return n * first_s + growth_s * (n * (n - 1) / 2)

        next_s = self._source.next_s
        free_s = inf if next_s is None or self._scheduler.blocked else next_s - self._now_s
        if sum_s(most) < free_s:
            return most, sum_s(most)
        low, high = 0, most  # the fewest steps that last until then
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sum_s(middle) < free_s else (low, middle)
        return high, sum_s(high)
