"""Which requests are in the next step? The rules of vLLM's V1 scheduler, first come first served.

Read from vllm/v1/core/sched/scheduler.py and v1/core/kv_cache_manager.py of 0.19.0:

1. Running requests come first, in order of admission. Each that has finished its prompt generates one token; one whose
   prompt is unfinished gets what is left of the step's tokens.
2. A running request that needs a block when none is free preempts the last one that was admitted, or itself. The
   preempted one loses its blocks and goes back to the head of the queue; its tokens are computed again.
3. Unless any was preempted, waiting requests are admitted while tokens and sequences are left, and only while blocks
   for the whole prompt are free. The first that does not fit holds up those behind it.
4. What the cache still holds of a prompt is not computed, but at least its last token is.

Every running request is in every step, and only the last admitted one can have an unfinished prompt. So decoding
sequences advance together, and steps in which nothing else happens are counted, not simulated one by one. Not included:
speculation, priorities, images, asynchronous scheduling (which releases a slot one step later).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from calc.simulate.blocks import Group, Needs, Pool, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What limits a step: tokens, sequences, and the blocks of the pool by group. `caching` of prefixes and of what
    preempted requests had, where one group holds everything.
    """

    step_tokens: int
    sequences: int
    blocks: int
    groups: tuple[Group, ...] = (Group(16, 2**40),)
    caching: bool = True

    @property
    def block_tokens(self) -> int:
        """Tokens of a block that can be found again."""
        return self.groups[0].block_tokens

    def blocks_of(self, tokens: int) -> int:
        """Blocks of a request with so many tokens in the cache."""
        return sum(group.blocks(tokens) for group in self.groups)


END = 2**30
"""The event that a sequence ends, after those of groups in the same step."""


class Request:
    """One request, from its arrival to its last token. Times are in seconds, None until then.

    `prefix` is what its prompt has in common with others, of which `common` blocks are whole. `waits` are the times
    between which it waited: more than one where it was preempted.
    """

    __slots__ = (
        "arrival_s",
        "base",
        "cached_tokens",
        "common",
        "computed",
        "end_s",
        "first_s",
        "held",
        "last_step",
        "made",
        "new_tokens",
        "number",
        "preemptions",
        "prefix",
        "prompt_tokens",
        "recomputed_tokens",
        "remains",
        "shared",
        "waiting_s",
        "waits",
    )  # fmt: skip

    def __init__(
        self, number: int, arrival_s: float, prompt_tokens: int, new_tokens: int, prefix: Text | None, common: int
    ) -> None:
        self.number, self.arrival_s = number, arrival_s
        self.prompt_tokens, self.new_tokens = prompt_tokens, new_tokens
        self.prefix, self.common, self.shared = prefix, common, 0
        self.computed = self.made = self.held = self.base = 0
        self.last_step = -1
        self.cached_tokens = self.recomputed_tokens = self.preemptions = 0
        self.remains: Text | None = None
        self.waiting_s = arrival_s
        self.first_s = self.end_s = 0.0
        self.waits: list[tuple[float, float]] = []

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and those made."""
        return self.prompt_tokens + self.made


@dataclass(slots=True)
class Step:
    """What one step computes: sequences that make one token each, with the tokens they see in all, and chunks.

    `most_repeats`: how many steps after one another are the same but for the contexts, which grow by one token each.
    `made` tokens came of it, once it is done.
    """

    decoding: int = 0
    context_tokens: int = 0
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    most_repeats: int = 1
    made: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that one such step computes."""
        return self.decoding + sum(n for _, n in self.chunks)


class Scheduler:
    """The state between steps. `plan` says what the next one computes, `done` what follows from it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pool = Pool(server.blocks, caching=server.caching)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.step = 0
        self.decoding = 0
        self._bases = 0
        self._needs = Needs(server.groups)
        self._events: list[tuple[int, int, int, Request]] = []  # step, what (a group that is full, or END), who
        self.unfinished: Request | None = None
        self.blocked = False

    # --- the next step --------------------------------------------------------------------------------------

    def plan(self) -> Step:
        """The next step: blocks are taken, requests admitted and preempted."""
        step = Step()
        self._make_room(step)
        budget = self.server.step_tokens - self.decoding
        budget -= self._continue_prompt(step, budget)
        self.blocked = False
        if not step.preempted:
            self._admit(step, budget)
        step.decoding = self.decoding
        step.context_tokens = self._bases + self.decoding * (self.step + 1)
        if not step.chunks and not step.preempted and self.decoding:
            step.most_repeats = self._quiet_steps()
        return step

    def _make_room(self, step: Step) -> None:
        """Blocks for the sequences that make a token; where too few are free the last admitted are preempted."""
        needed = self._needs.at(self.step)
        if needed <= self.pool.free:
            self.pool.take(needed)
            return
        at = 0
        while at < len(self.running) and self.running[at] is not self.unfinished:
            request = self.running[at]
            needed = self._needs.of(request.base + self.step)
            while needed > self.pool.free:
                last = self.running.pop()
                self._preempt(last, step)
                if last is request:
                    return
            if needed:
                self.pool.take(needed)
            at += 1

    def _continue_prompt(self, step: Step, budget: int) -> int:
        """The next chunk of the unfinished prompt, and how many tokens it has."""
        request = self.unfinished
        if request is None or budget <= 0:
            return 0
        n = min(request.tokens - request.computed, budget)
        needed = self.server.blocks_of(request.computed + n) - request.held
        if needed > self.pool.free:
            self.running.pop()
            self._preempt(request, step)
            return 0
        self._take(request, n, needed)
        step.chunks.append((request, n))
        return n

    def _admit(self, step: Step, budget: int) -> None:
        while self.waiting and budget > 0:
            if len(self.running) == self.server.sequences:
                break
            request = self.waiting[0]
            shared, own = self._found(request)
            idle = _idle(request.prefix, shared) + own
            if self.server.blocks_of(request.tokens) - shared - own + idle > self.pool.free:
                break
            self.waiting.popleft()
            self._hold(request, shared, own)
            n = min(request.tokens - request.computed, budget)
            self._take(request, n, self.server.blocks_of(request.computed + n) - request.held)
            self.running.append(request)
            step.admitted.append(request)
            step.chunks.append((request, n))
            budget -= n
        self.blocked = bool(self.waiting)

    def _found(self, request: Request) -> tuple[int, int]:
        """Blocks of a request that the cache holds: of the prefix, and of its own after it where it was preempted."""
        if not self.server.caching:
            return 0, 0
        most = (request.tokens - 1) // self.server.block_tokens
        shared = 0 if request.prefix is None else min(request.prefix.cached, request.common, most)
        own = 0 if request.remains is None or shared < request.common else request.remains.cached
        return shared, min(own, most - shared)

    def _hold(self, request: Request, shared: int, own: int) -> None:
        if shared and request.prefix is not None:
            self.pool.hold(request.prefix, shared)
        if own and request.remains is not None:
            self.pool.hold(request.remains, own)
        request.remains = None
        request.shared, request.held = shared, shared + own
        request.computed = (shared + own) * self.server.block_tokens
        if request.preemptions:
            request.recomputed_tokens -= request.computed
        else:
            request.cached_tokens = request.computed

    def _take(self, request: Request, n: int, needed: int) -> None:
        """Blocks for the next `n` tokens. Whole blocks of the prefix can be found by others at once."""
        self.pool.take(needed)
        request.held += needed
        if request.prefix is None or not self.server.caching or request.shared == request.common:
            return
        whole = min((request.computed + n) // self.server.block_tokens, request.common)
        if request.prefix.cached == request.shared < whole:
            self.pool.extend(request.prefix, whole - request.shared)
            request.shared = whole

    def _preempt(self, request: Request, step: Step) -> None:
        """Back to the head of the queue, without blocks. What was whole of them can be found again for a while."""
        if request is self.unfinished:
            self.unfinished = None
        else:
            self._leave(request)
        request.recomputed_tokens += request.computed
        request.preemptions += 1
        whole = request.computed // self.server.block_tokens if self.server.caching else 0
        self._give_back(request, max(0, whole - request.shared))
        request.computed = 0
        self.waiting.appendleft(request)
        step.preempted.append(request)

    def _give_back(self, request: Request, whole: int) -> None:
        """All blocks of a request, the last ones first; `whole` of its own are kept for itself."""
        self.pool.give(request.held - request.shared - whole)
        if whole:
            request.remains = Text(cached=whole)
            self.pool.give(whole, request.remains)
        if request.prefix is not None and request.shared:
            self.pool.release(request.prefix, request.shared)
        request.held = request.shared = 0

    # --- what follows from a step ---------------------------------------------------------------------------

    def done(self, step: Step, repeats: int = 1) -> tuple[list[Request], list[Request]]:
        """The requests whose first token the step made, and those that it ended; `repeats` such steps were taken."""
        if repeats > 1:
            self.pool.take(self._needs.over(self.step + 1, repeats - 1))
        self.step += repeats
        first: list[Request] = []
        ended = self._due()
        step.made = repeats * step.decoding
        for request, n in step.chunks:
            request.computed += n
            if request.computed < request.tokens:
                self.unfinished = request
                continue
            if request is self.unfinished:
                self.unfinished = None
            request.made += 1
            step.made += 1
            if request.made == 1:
                first.append(request)
            if request.made == request.new_tokens:
                ended.append(request)
            else:
                self._join(request)
        self._end(ended)
        return first, ended

    def _end(self, ended: list[Request]) -> None:
        """Blocks are given back in the order in which the requests run: it decides what is evicted first."""
        if len(ended) > 1:
            numbers = {request.number for request in ended}
            ended = [request for request in self.running if request.number in numbers]
        for request in ended:
            self.running.remove(request)
            self._give_back(request, 0)

    def _join(self, request: Request) -> None:
        """From the next step on the request makes a token in each."""
        request.base = request.computed - self.step
        request.last_step = self.step + request.new_tokens - request.made
        self.decoding += 1
        self._bases += request.base
        heappush(self._events, (request.last_step, END, request.number, request))
        for i, group in enumerate(self.server.groups):
            left = group.most_tokens - request.computed
            if left <= 0:
                continue
            self._needs.change(i, request.base, 1)
            if self.step + left <= request.last_step:
                heappush(self._events, (self.step + left, i, request.number, request))

    def _leave(self, request: Request) -> None:
        """The request makes no more tokens: it ends or is preempted. Its blocks are counted, what it made is known."""
        request.computed = request.base + self.step
        request.made = request.computed - request.prompt_tokens + 1
        request.held = self.server.blocks_of(request.computed)
        request.last_step = -1
        self.decoding -= 1
        self._bases -= request.base
        for i, group in enumerate(self.server.groups):
            if request.computed < group.most_tokens:
                self._needs.change(i, request.base, -1)

    def _due(self) -> list[Request]:
        """The sequences that the steps so far ended. Those that have the most blocks of a group need no more there."""
        ended = []
        while self._events and self._events[0][0] <= self.step:
            event = heappop(self._events)
            _, what, _, request = event
            if self._is_void(event):
                continue
            if what == END:
                self._leave(request)
                ended.append(request)
            else:
                self._needs.change(what, request.base, -1)
        return ended

    def _is_void(self, event: tuple[int, int, int, Request]) -> bool:
        """Whether the request was preempted after this was noted: then it comes to the same point in a later step."""
        step, what, _, request = event
        if what == END:
            return request.last_step != step
        group = self.server.groups[what]
        return request.last_step < 0 or request.base + step != group.most_tokens

    def _quiet_steps(self) -> int:
        """How many steps from now on make one token per sequence and nothing else, if nobody arrives."""
        most = self._next_event() - self.step
        if self._needs.over(self.step + 1, most - 1) <= self.pool.free:
            return most
        low, high = 1, most
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._needs.over(self.step + 1, middle - 1) <= self.pool.free
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _next_event(self) -> int:
        """The step after which a sequence ends or needs no more blocks of a group."""
        while self._is_void(self._events[0]):
            heappop(self._events)
        return self._events[0][0]


def _idle(text: Text | None, n: int) -> int:
    """Of the first `n` cached blocks of a text those that nobody holds."""
    return 0 if text is None else max(0, n - len(text.holders))
