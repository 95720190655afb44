"""Runs: closed forms of a queue, no load and full load, what is conserved, and steps that are counted together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import CalcError
from calc.model.study import Policy, Study
from calc.servers.records import ServerOptions
from calc.simulate.blocks import Group
from calc.simulate.capacity import full_load
from calc.simulate.lengths import fixed, parse_lengths
from calc.simulate.load import Load
from calc.simulate.run import Run, simulate
from calc.simulate.scheduler import Server
from calc.simulate.served import served_by
from calc.simulate.step_times import Chunk, StepTimes
from calc.simulate.summary import outcome
from calc.simulate.workload import Arrival, Listed, Mix, Users, constant, poisson
from calc.sources.catalog import find_device, find_model
from calc.speed.asked import Asked
from calc.speed.asked import Load as Kind
from calc.speed.estimate import estimate
from calc.speed.room import room_of
from calc.speed.steps import Steps
from tests.examples import examples


@dataclass
class Straight:
    """A step takes a second, and more for every token and for what its sequences see. `single`: one step at a time."""

    per_token_s: float = 0.0
    per_context_s: float = 0.0
    single: bool = False

    def step_s(self, decoding: int, context: float, chunks: Sequence[Chunk]) -> float:
        tokens = decoding + sum(new for new, _ in chunks)
        return 1.0 + self.per_token_s * tokens + self.per_context_s * decoding * context

    def straight_until(self, context: float) -> float:
        return context + 1 if self.single else float("inf")


def study(model: str = "llama-3-8b", device: str = "h100-sxm") -> Study:
    return Study(model=find_model(model), device=find_device(device), policy=Policy.REPLICATED)


def vllm(
    prompt: int, new: int, *, model: str = "llama-3-8b", device: str = "h100-sxm", tp: int = 1
) -> tuple[Server, StepTimes]:
    found = served_by(study(model, device), ServerOptions(tp=tp), longest=prompt + new)
    assert found.server is not None
    return found.server, StepTimes(Steps(study=study(model, device), asked=Asked(tp=tp)))


def requests(n: int, prompt: int, new: int) -> list[Arrival]:
    return Mix(prompt=fixed(prompt), new=fixed(new)).drawn(n, 0)


# --- closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_with_equal_work_waits_as_m_d_1_says(load: float) -> None:
    """Requests of one token, one at a time, a second each: the mean wait is load / (2 (1 - load)) seconds.

    Pollaczek and Khinchine's formula. 15,000 requests: their mean is within a tenth of it.
    """
    server = Server(step_tokens=100, sequences=1, blocks=1000, caching=False)
    seen = outcome(simulate(Listed(poisson(requests(15_000, 10, 1), load, 7)), server, Straight()))
    assert seen.wait is not None
    assert seen.wait.mean == pytest.approx(load / (2 * (1 - load)), rel=0.1)
    assert seen.ttft is not None
    assert seen.ttft.mean == pytest.approx(seen.wait.mean + 1)


def test_constant_arrivals_below_capacity_never_wait() -> None:
    server = Server(step_tokens=100, sequences=1, blocks=1000)
    seen = outcome(simulate(Listed(constant(requests(100, 10, 1), 0.9)), server, Straight()))
    assert seen.wait is not None
    assert seen.wait.values[-1] == pytest.approx(0.0, abs=1e-9)


def test_a_queue_above_capacity_grows_by_the_difference() -> None:
    """1.25 requests per second at one per second: after n arrivals n / 5 wait, and the last one waits n / 5 seconds."""
    server = Server(step_tokens=100, sequences=1, blocks=1000)
    seen = outcome(simulate(Listed(constant(requests(1000, 10, 1), 1.25)), server, Straight()))
    assert seen.wait is not None
    assert seen.wait.values[-1] == pytest.approx(999 - 999 / 1.25, abs=0.01)
    assert seen.waiting_most == pytest.approx(200, abs=1)
    assert seen.requests_per_s == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("model", ["llama-3-8b", "gemma-3-27b", "qwen3-30b-a3b"])
def test_alone_a_request_sees_what_the_estimate_says(model: str) -> None:
    server, times = vllm(1024, 256, model=model)
    asked = Asked(prompt_tokens=1024, new_tokens=256)
    answer = estimate(study(model), asked, room_of(study(model), asked))
    seen = outcome(simulate(Listed(constant(requests(5, 1024, 256), 0.01)), server, times))
    assert answer.ttft is not None
    assert answer.tpot is not None
    assert seen.ttft is not None
    assert seen.tpot is not None
    assert seen.ttft.values == pytest.approx([answer.ttft.mid] * 5, rel=1e-9)
    assert seen.tpot.mean == pytest.approx(answer.tpot.mid, rel=2e-4)  # the mean of all contexts, not the middle one


def test_a_prompt_longer_than_a_step_is_computed_in_chunks() -> None:
    """An A100 takes 2,048 tokens per step: a prompt of 8,000 takes four, as the estimate with such chunks has it."""
    server, times = vllm(7_900, 16, device="a100-80gb")
    asked = Asked(prompt_tokens=7_900, new_tokens=16, chunk=2048)
    answer = estimate(study(device="a100-80gb"), asked, room_of(study(device="a100-80gb"), asked))
    run = simulate(Listed(requests(1, 7_900, 16)), server, times)
    assert answer.ttft is not None
    assert run.requests[0].first_s == pytest.approx(answer.ttft.mid, rel=0.02)
    assert run.steps == 4 + 15


@pytest.mark.parametrize(
    ("model", "device", "tp", "prompt", "new"),
    [
        ("llama-3-8b", "h100-sxm", 1, 1024, 256),
        ("llama-3-8b", "a100-80gb", 1, 1024, 256),
        ("llama-3-8b", "h100-sxm", 1, 4000, 1000),
        ("llama-3-70b", "h100-sxm", 4, 1024, 256),
        ("mixtral-8x7b", "h100-sxm", 2, 1024, 256),
        ("gemma-3-27b", "h100-sxm", 1, 1024, 256),
    ],
)
def test_full_load_is_the_maximum_load_of_the_estimate_within_12_percent(
    model: str, device: str, tp: int, prompt: int, new: int
) -> None:
    server, times = vllm(prompt, new, model=model, device=device, tp=tp)
    asked = Asked(prompt_tokens=prompt, new_tokens=new, load=Kind.MAX, count=None, tp=tp)
    answer = estimate(study(model, device), asked, room_of(study(model, device), asked))
    assert answer.output_rate is not None
    found = full_load(requests(500, prompt, new), server, times) * new
    assert found == pytest.approx(answer.output_rate.mid, rel=0.12)


def test_users_in_a_closed_loop_see_about_what_the_estimate_says() -> None:
    """TPOT within 12 %: the estimate computes prompts between steps, the scheduler in them."""
    server, times = vllm(1024, 256)
    load = Load(server=server, times=times, requests=requests(600, 1024, 256))
    for users in (1, 8, 32, 128):
        asked = Asked(prompt_tokens=1024, new_tokens=256, load=Kind.CLOSED, count=users)
        answer = estimate(study(), asked, room_of(study(), asked))
        seen = load.with_users(users)
        assert answer.tpot is not None
        assert seen.tpot is not None
        assert seen.tpot.mean == pytest.approx(answer.tpot.mid, rel=0.12)


# --- what is conserved ----------------------------------------------------------------------------------------

NAMES = st.sampled_from([None, "a", "b"])
drawn = st.lists(
    st.tuples(st.floats(0, 30), st.integers(1, 40), st.integers(1, 30), NAMES, st.integers(0, 40)),
    min_size=1,
    max_size=15,
)  # fmt: skip
servers = st.tuples(st.integers(8, 40), st.integers(1, 8), st.integers(1, 8), st.integers(0, 30), st.booleans())


def made(drawn: list[tuple[float, int, int, str | None, int]]) -> list[Arrival]:
    return sorted((Arrival(*one) for one in drawn), key=lambda one: one.at_s)


def server_for(arrivals: list[Arrival], sizes: tuple[int, int, int, int, bool]) -> Server:
    step_tokens, sequences, block_tokens, spare, caching = sizes
    blocks = max(-(-one.longest // block_tokens) for one in arrivals) + spare
    return Server(
        step_tokens=step_tokens,
        sequences=sequences,
        blocks=blocks,
        groups=(Group(block_tokens, 10**6),),
        caching=caching,
    )


@examples(150)
@given(drawn, servers)
def test_every_token_is_accounted_for_and_every_request_ends_once(
    asked: list[tuple[float, int, int, str | None, int]], sizes: tuple[int, int, int, int, bool]
) -> None:
    arrivals = made(asked)
    server = server_for(arrivals, sizes)
    run = simulate(Listed(arrivals), server, Straight(0.01, 0.001))
    assert [(one.prompt_tokens, one.new_tokens) for one in run.requests] == [
        (one.prompt_tokens, one.new_tokens) for one in arrivals
    ]
    computed = sum(
        one.prompt_tokens + one.new_tokens - 1 - one.cached_tokens + one.recomputed_tokens for one in run.requests
    )
    assert run.tokens == computed
    assert sum(piece.made for piece in run.pieces) == sum(one.new_tokens for one in run.requests)
    for one in run.requests:
        assert one.made == one.new_tokens
        assert one.arrival_s <= one.waits[0][1] <= one.first_s <= one.end_s
        assert len(one.waits) == 1 + one.preemptions
        assert 0 <= one.cached_tokens < one.prompt_tokens
    assert all(0 <= held <= server.blocks for piece in run.pieces for held in (piece.held_before, piece.held_after))
    assert run.pieces[-1].held_after == 0


@examples(150)
@given(drawn, servers)
def test_steps_counted_together_are_the_same_steps(
    asked: list[tuple[float, int, int, str | None, int]], sizes: tuple[int, int, int, int, bool]
) -> None:
    arrivals = made(asked)
    server = server_for(arrivals, sizes)

    def times(single: bool) -> Run:
        return simulate(Listed(arrivals), server, Straight(0.013, 0.0007, single))

    together, apart = times(False), times(True)
    assert together.steps == apart.steps
    assert together.tokens == apart.tokens
    for one, other in zip(together.requests, apart.requests, strict=True):
        assert one.first_s == pytest.approx(other.first_s)
        assert one.end_s == pytest.approx(other.end_s)
        assert (one.preemptions, one.cached_tokens) == (other.preemptions, other.cached_tokens)


def test_windows_and_several_groups_give_all_blocks_back() -> None:
    server = Server(
        step_tokens=64, sequences=4, blocks=40, groups=(Group(4, 100), Group(4, 3), Group(8, 2)), caching=False
    )
    arrivals = poisson(Mix(prompt=parse_lengths("5..40"), new=parse_lengths("1..30")).drawn(300, 3), 0.2, 3)
    together = simulate(Listed(arrivals), server, Straight(0.01, 0.001))
    apart = simulate(Listed(arrivals), server, Straight(0.01, 0.001, single=True))
    assert sum(one.preemptions for one in together.requests) > 0
    assert [one.end_s for one in together.requests] == pytest.approx([one.end_s for one in apart.requests])
    assert together.pieces[-1].held_after == 0


# --- the rest -------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    server, times = vllm(2000, 500)
    mix = Mix(prompt=parse_lengths("lognormal:500,0.5"), new=parse_lengths("1..400"), shared=0.3, prefixes=3)

    def ends(seed: int) -> list[float]:
        arrivals = [one for one in poisson(mix.drawn(200, seed), 10.0, seed) if one.longest <= 2500]
        return [one.end_s for one in simulate(Listed(arrivals), server, times).requests]

    assert ends(1) == ends(1)
    assert ends(1) != ends(2)


def test_a_prompt_that_is_all_in_the_cache_computes_its_last_block() -> None:
    """Prompts of 8 tokens that are the same, blocks of 4: the second finds one block and computes 4 tokens."""
    server = Server(step_tokens=100, sequences=4, blocks=20, groups=(Group(4, 99),))
    run = simulate(Listed([Arrival(0.0, 8, 2, "a", 8), Arrival(10.0, 8, 2, "a", 8)]), server, Straight())
    assert [one.cached_tokens for one in run.requests] == [0, 4]


def test_shared_beginnings_are_found_while_the_cache_holds_them() -> None:
    """Half of each prompt is one of four beginnings of 512 tokens: all but the first four find it."""
    server, times = vllm(1024, 64)
    mix = Mix(prompt=fixed(1024), new=fixed(64), shared=0.5, prefixes=4)
    seen = outcome(simulate(Listed(poisson(mix.drawn(500, 0), 2.0, 0)), server, times))
    assert seen.cached_tokens == 496 * 512


def test_a_user_sends_again_after_a_think_time() -> None:
    server = Server(step_tokens=100, sequences=4, blocks=100)
    run = simulate(Users(1, requests(3, 10, 2), think_s=5.0), server, Straight())
    assert [(one.arrival_s, one.first_s, one.end_s) for one in run.requests] == [(0, 1, 2), (7, 8, 9), (14, 15, 16)]


def test_more_users_than_the_server_has_sequences_wait() -> None:
    server = Server(step_tokens=100, sequences=2, blocks=100)
    run = simulate(Users(3, requests(9, 10, 4)), server, Straight())
    assert max(one.waits[0][1] - one.waits[0][0] for one in run.requests) == 4.0


def test_a_request_that_never_fits_is_refused() -> None:
    server = Server(step_tokens=100, sequences=2, blocks=10)
    with pytest.raises(CalcError, match="a request of 200 tokens needs 13 cache blocks, but the server has only 10"):
        simulate(Listed([Arrival(0.0, 100, 100)]), server, Straight())


@pytest.mark.parametrize(("rate", "text"), [(0.05, "256"), (20.0, "exponential:256"), (30.0, "256")])
def test_ten_thousand_requests_take_seconds(rate: float, text: str) -> None:
    """Idle, near the full load, above it: 0.4 to 1.3 s of one core of the machine of docs/estimates.md."""
    server, times = vllm(4000, 4000)
    arrivals = poisson(Mix(prompt=fixed(1024), new=parse_lengths(text)).drawn(10_000, 0), rate, 0)
    began = time.process_time()
    run = simulate(Listed(arrivals), server, times)
    assert time.process_time() - began < 5
    assert len(run.requests) == 10_000
