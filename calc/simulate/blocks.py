"""Which blocks of the cache are in use, which are free, and which free ones still hold reusable content?

As in vLLM 0.19 (v1/core/block_pool.py): an unused block keeps its content and goes to the end of a queue; new blocks
are taken from its front. The blocks of a request are released last one first, so that what remains cached of a text is
always its beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a block table: tokens per block, and the maximum blocks per request."""

    block_tokens: int
    most: int

    @property
    def most_tokens(self) -> int:
        """Number of tokens after which a request needs no more blocks."""
        return self.block_tokens * self.most

    def blocks(self, tokens: int) -> int:
        """Blocks for the first `tokens` of a request."""
        return min(-(-tokens // self.block_tokens), self.most)


@dataclass(slots=True)
class Free:
    """Adjacent free blocks in the queue. `of` is the text that they still hold, if any."""

    n: int
    of: Text | None = None


@dataclass(slots=True)
class Text:
    """A shared prefix, or the text of a preempted request; `cached` of its blocks are in the pool.

    `holders` is the number of requests that use each block. Unused blocks are in the queue.
    """

    cached: int = 0
    holders: list[int] = field(default_factory=list)
    free: list[Free] = field(default_factory=list)

    @property
    def idle(self) -> int:
        """Blocks of it that are free, its last ones."""
        return self.cached - len(self.holders)


class Pool:
    """The blocks of a server. `size` is the number available to requests: vLLM keeps one block of its pool empty."""

    def __init__(self, size: int, *, caching: bool = True) -> None:
        self.size, self.free = size, size
        self._caching = caching
        self._queue: deque[Free] = deque([Free(size)])

    @property
    def used(self) -> int:
        """Blocks in use by requests."""
        return self.size - self.free

    def take(self, n: int) -> None:
        """Take the `n` blocks that have been free the longest. Their content is lost."""
        assert 0 <= n <= self.free
        self.free -= n
        if not self._caching:
            return
        while n:
            first = self._queue[0]
            taken = min(n, first.n)
            if first.of is not None:
                first.of.cached -= taken
            first.n -= taken
            n -= taken
            if not first.n:
                self._queue.popleft()

    def give(self, n: int, of: Text | None = None) -> None:
        """Release `n` blocks; with `of`, they are the last used ones of a text."""
        if not n:
            return
        self.free += n
        if not self._caching:
            return
        last = self._queue[-1] if self._queue else None
        if of is None and last is not None and last.of is None:
            last.n += n
            return
        freed = Free(n, of)
        self._queue.append(freed)
        if of is not None:
            of.free = [one for one in of.free if one.n]
            of.free.append(freed)

    def hold(self, text: Text, n: int) -> None:
        """Use the first `n` cached blocks of a text; those that were free are no longer free."""
        taken = n - len(text.holders)
        for i in range(min(n, len(text.holders))):
            text.holders[i] += 1
        if taken <= 0:
            return
        text.holders += [1] * taken
        self.free -= taken
        while taken:  # the beginning was freed last
            last = text.free[-1]
            each = min(taken, last.n)
            last.n -= each
            taken -= each
            if not last.n:
                text.free.pop()

    def extend(self, text: Text, n: int) -> None:
        """`n` blocks of one request become the next blocks of a text that others can also use."""
        text.cached += n
        text.holders += [1] * n

    def release(self, text: Text, n: int) -> None:
        """Release the first `n` blocks of a text. Those no longer used become free and stay cached."""
        for i in range(n):
            text.holders[i] -= 1
        held = len(text.holders)
        while text.holders and not text.holders[-1]:
            text.holders.pop()
        self.give(held - len(text.holders), text)


class Needs:
    """How many new blocks the decoding sequences need, by step number.

    A sequence needs one whenever its last block is full: every `block_tokens` steps, until the group has its most.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._limits = [(group.block_tokens, group.most_tokens) for group in groups]
        self._counts = [[0] * group.block_tokens for group in groups]
        self._full = 0

    def change(self, group: int, base: int, by: int) -> None:
        """A sequence of `base` + step tokens before a step comes to need blocks of a group (1), or ceases to (-1)."""
        self._counts[group][-base % self._groups[group].block_tokens] += by
        self._full += by

    def of(self, tokens: int) -> int:
        """New blocks for the token of a sequence that comes after `tokens`."""
        needed = 0
        for block_tokens, most_tokens in self._limits:
            if not tokens % block_tokens and tokens < most_tokens:
                needed += 1
        return needed

    def at(self, step: int) -> int:
        """New blocks in one step."""
        return sum(counts[step % len(counts)] for counts in self._counts)

    def over(self, step: int, n: int) -> int:
        """New blocks in `n` steps from `step` on."""
        if not self._full:
            return 0
        return sum(_over(counts, step, n) for counts in self._counts)


def _over(counts: list[int], step: int, n: int) -> int:
    period = len(counts)
    rounds, rest = divmod(n, period)
    first = step % period
    after = counts[first : first + rest] + counts[: max(0, first + rest - period)]
    return rounds * sum(counts) + sum(after)
