"""The scheduler: traces worked out by hand, and the same plans as vLLM's own rules written a second time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.simulate.blocks import Group, Text
from calc.simulate.scheduler import Request, Scheduler, Server
from tests.examples import examples

_spec = importlib.util.spec_from_file_location("simulate_oracle", Path(__file__).with_name("oracle.py"))
assert _spec is not None
assert _spec.loader is not None
oracle = importlib.util.module_from_spec(_spec)
sys.modules["simulate_oracle"] = oracle
_spec.loader.exec_module(oracle)

Asked = tuple[int, int, int, int | None, int]
"""Step of arrival, prompt, new tokens, prefix, common tokens."""


def request(number: int, prompt: int, new: int, prefix: Text | None = None, common: int = 0) -> Request:
    return Request(number, 0.0, prompt, new, prefix, common)


def trace(scheduler: Scheduler, steps: int) -> list[dict[str, Any]]:
    """So many steps one by one: tokens of each request, who was preempted, who ended, blocks that are free."""
    seen = []
    for _ in range(steps):
        making = [one.number for one in scheduler.running if one is not scheduler.unfinished]
        step = scheduler.plan()
        left = [number for number in making if number not in {one.number for one in step.preempted}]
        tokens = dict.fromkeys(left, 1) | {one.number: n for one, n in step.chunks}
        free = scheduler.pool.free
        _, ended = scheduler.done(step)
        preempted, ends = [one.number for one in step.preempted], sorted(one.number for one in ended)
        seen.append({"tokens": tokens, "preempted": preempted, "ended": ends, "free": free})
    return seen


# --- by hand --------------------------------------------------------------------------------------------------


def test_chunks_of_prompts_share_steps_with_sequences_that_make_tokens() -> None:
    """A step has 8 tokens. A (prompt 10, 3 new) and B (prompt 5, 2 new) wait from the start.

    1: A's first 8 tokens; nothing is left for B. 2: A's last 2 (its first token) and 5 of B, whole (its first token).
    3: both make one token, and B ends. 4: A makes its third and ends.
    """
    scheduler = Scheduler(Server(step_tokens=8, sequences=4, blocks=100, groups=(Group(4, 99),)))
    scheduler.waiting += [request(0, 10, 3), request(1, 5, 2)]
    assert [(one["tokens"], one["ended"], one["free"]) for one in trace(scheduler, 4)] == [
        ({0: 8}, [], 98),  # 2 blocks of 4
        ({0: 2, 1: 5}, [], 95),  # A has 3 blocks, B 2
        ({0: 1, 1: 1}, [1], 95),  # 11 tokens in 3 blocks, 6 in 2
        ({0: 1}, [0], 97),  # 12 tokens in 3 blocks
    ]
    assert scheduler.pool.free == 100


def test_the_last_admitted_is_preempted_and_computed_again() -> None:
    """5 blocks of 2 tokens, no cache. A (prompt 3, 4 new) and B (prompt 4, 3 new).

    1: 3 + 4 tokens take 2 + 2 blocks. 2: A's 4th token fits in its blocks, B's 5th takes the last one. 3: A's 5th needs
    a block: B, admitted last, loses its 3 and waits; nobody is admitted in such a step. 4: A's 6th fits; B's 4 + 2
    tokens need 3 blocks and 2 are free. A has made 4 and ends. 5: B's 6 tokens are computed again and give its third.
    """
    scheduler = Scheduler(Server(step_tokens=20, sequences=4, blocks=5, groups=(Group(2, 99),), caching=False))
    a, b = request(0, 3, 4), request(1, 4, 3)
    scheduler.waiting += [a, b]
    assert trace(scheduler, 5) == [
        {"tokens": {0: 3, 1: 4}, "preempted": [], "ended": [], "free": 1},
        {"tokens": {0: 1, 1: 1}, "preempted": [], "ended": [], "free": 0},
        {"tokens": {0: 1}, "preempted": [1], "ended": [], "free": 2},
        {"tokens": {0: 1}, "preempted": [], "ended": [0], "free": 2},
        {"tokens": {1: 6}, "preempted": [], "ended": [1], "free": 2},
    ]
    assert (b.preemptions, b.recomputed_tokens, a.recomputed_tokens) == (1, 5, 0)
    assert scheduler.pool.free == 5


def test_what_a_preempted_request_had_is_found_again() -> None:
    """The same with the cache: of B's 3 blocks the last is half full, and A takes that one, the first to be evicted.

    B's first 2 blocks hold 4 tokens that are not computed again: 2 of its 6 are.
    """
    scheduler = Scheduler(Server(step_tokens=20, sequences=4, blocks=5, groups=(Group(2, 99),)))
    a, b = request(0, 3, 4), request(1, 4, 3)
    scheduler.waiting += [a, b]
    seen = trace(scheduler, 5)
    assert seen[2] == {"tokens": {0: 1}, "preempted": [1], "ended": [], "free": 2}
    assert seen[4] == {"tokens": {1: 2}, "preempted": [], "ended": [1], "free": 2}
    assert (b.preemptions, b.recomputed_tokens) == (1, 1)  # 5 were computed, 4 found


def test_a_common_beginning_is_computed_and_held_once() -> None:
    """Three prompts of 9 tokens with 8 in common, blocks of 4, 10 tokens per step.

    1: A's 9 tokens; its 2 whole blocks can be found at once, so that B computes 1 token, its ninth. 2: A and B make
    their second token and end; C finds the 2 blocks. Blocks: 2 in common and 1 each.
    """
    common = Text()
    scheduler = Scheduler(Server(step_tokens=10, sequences=4, blocks=20, groups=(Group(4, 99),)))
    scheduler.waiting += [request(i, 9, 2, common, 2) for i in range(3)]
    assert trace(scheduler, 3) == [
        {"tokens": {0: 9, 1: 1}, "preempted": [], "ended": [], "free": 16},
        {"tokens": {0: 1, 1: 1, 2: 1}, "preempted": [], "ended": [0, 1], "free": 15},
        {"tokens": {2: 1}, "preempted": [], "ended": [2], "free": 17},
    ]
    assert scheduler.pool.free == 20
    assert common.cached == 2


def test_a_prompt_that_does_not_fit_holds_up_those_behind_it() -> None:
    """10 blocks of 1 token: B's prompt of 8 does not fit beside A's, and C's of 1 would, but waits behind B."""
    scheduler = Scheduler(Server(step_tokens=10, sequences=4, blocks=10, groups=(Group(1, 99),)))
    scheduler.waiting += [request(0, 5, 2), request(1, 8, 1), request(2, 1, 1)]
    seen = trace(scheduler, 3)
    assert [one["tokens"] for one in seen] == [{0: 5}, {0: 1}, {1: 8, 2: 1}]


def test_no_more_sequences_run_than_the_server_has() -> None:
    scheduler = Scheduler(Server(step_tokens=100, sequences=2, blocks=100))
    scheduler.waiting += [request(i, 5, 2) for i in range(3)]
    assert [one["tokens"] for one in trace(scheduler, 3)] == [{0: 5, 1: 5}, {0: 1, 1: 1}, {2: 5}]


def test_a_window_needs_no_more_blocks_once_it_is_full() -> None:
    """Blocks of 2: one group keeps everything, the other at most 2 blocks. After 3 tokens 2 + 2 are held."""
    scheduler = Scheduler(
        Server(step_tokens=9, sequences=1, blocks=50, groups=(Group(2, 99), Group(2, 2)), caching=False)
    )
    scheduler.waiting.append(request(0, 3, 6))
    assert [50 - one["free"] for one in trace(scheduler, 6)] == [4, 4, 5, 5, 6, 6]
    assert scheduler.pool.free == 50


# --- against the rules written twice --------------------------------------------------------------------------

NAMES = st.sampled_from([None, 0, 1])
asked = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 30), st.integers(1, 12), NAMES, st.integers(0, 30)),
    min_size=1,
    max_size=12,
)  # fmt: skip


@examples(150)
@given(asked, st.integers(8, 20), st.integers(1, 6), st.integers(1, 5), st.integers(0, 12), st.booleans())
def test_the_plans_are_those_of_vllms_rules(
    jobs: list[Asked], step_tokens: int, sequences: int, block_tokens: int, spare: int, caching: bool
) -> None:
    """Every step: who computes how many tokens, who is preempted, who ends, and how many blocks are free."""
    blocks = max(-(-(prompt + new) // block_tokens) for _, prompt, new, _, _ in jobs) + spare
    other = oracle.Oracle(
        step_tokens=step_tokens, sequences=sequences, blocks=blocks, block_tokens=block_tokens, caching=caching
    )
    scheduler = Scheduler(
        Server(
            step_tokens=step_tokens,
            sequences=sequences,
            blocks=blocks,
            groups=(Group(block_tokens, 10**6),),
            caching=caching,
        )
    )
    texts: dict[int, Text] = {}
    arriving = sorted(enumerate(jobs), key=lambda one: one[1][0])
    made = []
    for now in range(2000):
        while arriving and arriving[0][1][0] <= now:
            number, (_, prompt, new, prefix, common) = arriving.pop(0)
            common = min(common, prompt - 1)  # as simulate has it: the last token of a prompt is its own
            other.waiting.append(oracle.Job(number, prompt, new, prefix, common))
            text = None if prefix is None else texts.setdefault(prefix, Text())
            whole = 0 if text is None else common // block_tokens
            made.append(request(number, prompt, new, text, whole))
            scheduler.waiting.append(made[-1])
        if not arriving and not other.waiting and not other.running:
            break
        planned, mine = other.step(), trace(scheduler, 1)[0]
        assert mine["tokens"] == planned.tokens
        assert mine["preempted"] == planned.preempted
        assert mine["ended"] == sorted(planned.ended)
        assert mine["free"] == planned.free
        assert 0 <= scheduler.pool.free <= blocks
        assert scheduler.pool.free == len(other.free)
        assert [one.number for one in scheduler.waiting] == [one.number for one in other.waiting]
    else:
        pytest.fail("it never ends")
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.pool.free == blocks
