"""TTFT, TPOT and throughput of a load: one static batch, clients in a closed loop, or all requests at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from calc.explain.terms import maximum
from calc.model.study import Study
from calc.speed.asked import Asked, Load
from calc.speed.bands import band_for
from calc.speed.passes import PassTime
from calc.speed.spans import Band, Span
from calc.speed.steps import Steps, has_experts

QUEUE_FACTOR = 0.74
"""Factor on sqrt(clients - 1), for prompts that wait for one another; fitted on public closed-loop runs."""
MOST_BATCH = 2048
"""The most concurrent requests of any engine (TensorRT-LLM's default; vLLM and SGLang allow fewer)."""
FEW = 8
"""With fewer concurrent requests than this, a GB more or less changes the batch."""


@dataclass(frozen=True, slots=True)
class Room:
    """Concurrent requests that fit into memory: with the engine's reserve (`fitting`), and with none at all (`most`).

    `refusal`: why the engine would not start.
    """

    fitting: int
    most: int
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The result. Times are None if the plan does not fit; then `problem` says why.

    `limit`: the bottleneck of a step whose operators are not available.
    """

    asked: Asked
    batch: float
    fits: bool
    problem: str | None = None
    ttft: Span | None = None
    tpot: Span | None = None
    e2e: Span | None = None
    output_rate: Span | None = None
    prefill: PassTime | None = None
    decode: PassTime | None = None
    limit: str = "capacity"

    @property
    def user_rate(self) -> Span | None:
        """Tokens per second that one user sees."""
        return None if self.tpot is None else self.tpot.rate(1)

    @property
    def limited_by(self) -> str:
        """The bottleneck of decoding."""
        return self.limit if self.decode is None else self.decode.limited_by


def estimate(study: Study, asked: Asked, room: Room) -> Estimate:
    """Times of `asked`, with memory for the requests in `room`.

    Raises SpecError for a device without bandwidth or peak, even if nothing fits.
    """
    steps = Steps(study=study, asked=asked)
    batch = 0 if steps.device and room.refusal else _batch(asked, room.fitting)
    if not batch:
        return Estimate(asked=asked, batch=0, fits=False, problem=room.refusal or shortage(asked, room.fitting))
    if asked.load is Load.STATIC:
        return _static(steps, batch)
    return _closed(steps, batch) if asked.load is Load.CLOSED else _max_load(steps, batch, room.most)


def at_once(steps: Steps, batches: Any) -> Estimate:
    """Estimates for an array of static batches or of closed-loop clients (two or more), all of which fit."""
    return _static(steps, batches) if steps.asked.load is Load.STATIC else _closed(steps, batches)


def _batch(asked: Asked, fitting: int) -> int:
    """Requests per step; 0 if the plan does not fit."""
    if asked.load is Load.STATIC:
        return 0 if (asked.count or 1) > fitting else asked.count or 1
    most = min(max(0, fitting), MOST_BATCH)
    return most if asked.count is None else min(asked.count, most)


def shortage(asked: Asked, fitting: int) -> str:
    """The message that only `fitting` of the requests fit."""
    whole = f"{asked.context:,} tokens ({asked.prompt_tokens:,} prompt, {asked.new_tokens:,} generated)"
    if fitting < 1:
        return f"no request of {whole} fits beside the weights"
    return f"{fitting:,} requests of {whole} fit, not {asked.count:,}"


def _static(steps: Steps, batch: Any) -> Estimate:
    prefill_s, least_s = steps.prefill_s(batch)
    ttft = _band(steps, "ttft").around(prefill_s, least_s)
    return _answer(steps, batch, ttft, _per_token(steps, batch))


def _closed(steps: Steps, batch: Any) -> Estimate:
    """While one request generates its tokens, each other client sends one prompt, which runs between its steps."""
    prefill_s, least_s = steps.prefill_s()
    between_s = (batch - 1) * steps.prompt_share_s / steps.asked.new_tokens
    tpot = _per_token(steps, batch, between_s=between_s)
    waiting = 1 + QUEUE_FACTOR * maximum(batch / steps.asked.dp_attention - 1, 0.0) ** 0.5
    step_s = (steps.step(batch).expected_s + steps.host_s) * (batch > 1)
    return _answer(steps, batch, _band(steps, "ttft").around(prefill_s * waiting + step_s, least_s), tpot)


def _max_load(steps: Steps, batch: int, most: int) -> Estimate:
    """Maximum load: the device processes all prompts and tokens; memory is full of half-done requests."""
    _, least_s = steps.prefill_s()
    tpot = _per_token(steps, batch, between_s=batch * steps.prompt_share_s / steps.asked.new_tokens)
    alone = steps.decode(1, steps.asked.prompt_tokens).bound_s / steps.asked.step_tokens
    waited_s = (batch + 1) / 2 * steps.prompt_share_s + steps.step(batch).expected_s
    ttft = _band(steps, "ttft").around(waited_s, least_s)
    answer = _answer(steps, batch, ttft, replace(tpot, bound=min(tpot.bound, alone)))
    assert answer.output_rate is not None
    return replace(answer, output_rate=answer.output_rate.capped(_most_tokens(steps, max(batch, most))))


def _most_tokens(steps: Steps, most: int) -> Any:
    """The upper bound of tokens per second: memory completely full, steps and prompts overlapping."""
    decode, prefill = steps.decode(most, steps.asked.prompt_tokens), steps.prefill(steps.asked.dp_attention)
    new_tokens, each = steps.asked.new_tokens, steps.asked.step_tokens
    prompts_s = most / steps.asked.dp_attention * prefill.least_compute_s
    compute_s = new_tokens * decode.least_compute_s / each + prompts_s
    return steps.asked.stages * most * new_tokens / max(compute_s, new_tokens * decode.least_memory_s / each)


def _per_token(steps: Steps, batch: Any, *, between_s: Any = 0.0) -> Span:
    """Time per token: step time with host overhead divided by tokens per step, plus prompts of others in between."""
    each, (drafting_s, least_drafting_s) = steps.asked.step_tokens, steps.drafting(batch)
    expected_s = (steps.step(batch).expected_s + steps.host_s + drafting_s) / each + between_s
    return _band(steps, "tpot").around(expected_s, (steps.least_step_s(batch) + least_drafting_s) / each)


def _answer(steps: Steps, batch: Any, ttft: Span, tpot: Span) -> Estimate:
    asked = steps.asked
    e2e = ttft + tpot.times(asked.new_tokens - 1)
    # In a closed loop and at maximum load the time per token already includes the prompts of others.
    whole = e2e if asked.load is Load.STATIC else tpot.times(asked.new_tokens)
    return Estimate(
        asked=asked,
        batch=batch,
        fits=True,
        ttft=ttft,
        tpot=tpot,
        e2e=e2e,
        output_rate=whole.rate(batch * asked.new_tokens),
        prefill=steps.prefill(batch if asked.load is Load.STATIC else 1),
        decode=steps.step(batch),
    )


def _band(steps: Steps, what: str) -> Band:
    return band_for(steps, what, experts=has_experts(steps.model))
