"""The scheduler of vLLM 0.19.0 once more, request by request, step by step and block by block, with hashes.

Written from v1/core/sched/scheduler.py, kv_cache_manager.py, single_type_kv_cache_manager.py and block_pool.py, without
a look at calc.simulate: the tests hold the two against each other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Block:
    holders: int = 0
    key: Hashable = None


@dataclass(eq=False)
class Job:
    number: int
    prompt_tokens: int
    new_tokens: int
    prefix: Hashable = None
    common_tokens: int = 0
    computed: int = 0
    made: int = 0
    blocks: list[Block] = field(default_factory=list)
    cached_blocks: int = 0
    first_admission_found: int | None = None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.made

    def key(self, i: int, block_tokens: int) -> Hashable:
        """What the hash of the first i + 1 blocks says."""
        if self.prefix is not None and (i + 1) * block_tokens <= min(self.common_tokens, self.prompt_tokens):
            return ("prefix", self.prefix, i)
        return ("own", self.number, i)


@dataclass
class Planned:
    tokens: dict[int, int]
    preempted: list[int]
    made: list[int]
    ended: list[int]
    free: int


class Oracle:
    def __init__(self, *, step_tokens: int, sequences: int, blocks: int, block_tokens: int, caching: bool) -> None:
        self.step_tokens, self.sequences, self.block_tokens, self.caching = (
            step_tokens,
            sequences,
            block_tokens,
            caching,
        )
        self.free: OrderedDict[int, Block] = OrderedDict()
        for block in (Block() for _ in range(blocks)):
            self.free[id(block)] = block
        self.cached: dict[Hashable, dict[int, Block]] = {}
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self._all = list(self.free.values())

    def step(self) -> Planned:
        budget, scheduled, preempted = self.step_tokens, {}, []
        at = 0
        while at < len(self.running) and budget > 0:
            job = self.running[at]
            n = min(job.tokens - job.computed, budget)
            fits = False
            while not (fits := self._allocate(job, n, [])):
                last = self.running.pop()
                self._free(last)
                last.computed = 0
                self.waiting.insert(0, last)
                preempted.append(last.number)
                if last is job:
                    break
            if not fits:
                break
            scheduled[job] = n
            budget -= n
            at += 1
        if not preempted:
            while self.waiting and budget > 0 and len(self.running) < self.sequences:
                job = self.waiting[0]
                found = self._found(job)
                computed = len(found) * self.block_tokens
                n = min(job.tokens - computed, budget)
                idle = sum(not block.holders for block in found)
                if self._blocks(job.tokens) - len(found) + idle > len(self.free):
                    break
                if not self._allocate(job, n, found):
                    break
                self.waiting.pop(0)
                self.running.append(job)
                job.computed = computed
                if job.first_admission_found is None:
                    job.first_admission_found = computed
                scheduled[job] = n
                budget -= n
        made, ended = [], []
        for job, n in scheduled.items():
            job.computed += n
            if job.computed == job.tokens:
                job.made += 1
                made.append(job.number)
                if job.made == job.new_tokens:
                    ended.append(job)
        free = len(self.free)
        for job in ended:
            self.running.remove(job)
            self._free(job)
        return Planned({j.number: n for j, n in scheduled.items()}, preempted, made, [j.number for j in ended], free)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _found(self, job: Job) -> list[Block]:
        found: list[Block] = []
        if not self.caching:
            return found
        for i in range((job.tokens - 1) // self.block_tokens):
            known = self.cached.get(job.key(i, self.block_tokens))
            if not known:
                break
            found.append(next(iter(known.values())))
        return found

    def _allocate(self, job: Job, n: int, found: Sequence[Block]) -> bool:
        computed = job.computed + len(found) * self.block_tokens
        new = self._blocks(computed + n) - len(found) - len(job.blocks)
        if new + sum(not block.holders for block in found) > len(self.free):
            return False
        for block in found:
            if not block.holders:
                del self.free[id(block)]
            block.holders += 1
        job.blocks += found
        job.cached_blocks = max(job.cached_blocks, len(found))
        for _ in range(new):
            _, block = self.free.popitem(last=False)
            if block.key is not None:
                known = self.cached[block.key]
                del known[id(block)]
                if not known:
                    del self.cached[block.key]
                block.key = None
            block.holders = 1
            job.blocks.append(block)
        if self.caching:
            for i in range(job.cached_blocks, (computed + n) // self.block_tokens):
                job.blocks[i].key = job.key(i, self.block_tokens)
                self.cached.setdefault(job.blocks[i].key, {})[id(job.blocks[i])] = job.blocks[i]
            job.cached_blocks = max(job.cached_blocks, (computed + n) // self.block_tokens)
        return True

    def _free(self, job: Job) -> None:
        for block in reversed(job.blocks):
            block.holders -= 1
            if not block.holders:
                self.free[id(block)] = block
        job.blocks, job.cached_blocks = [], 0
