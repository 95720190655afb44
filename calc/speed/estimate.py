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
"""Of sqrt(clients - 1): how prompts wait for one another, fitted on public closed-loop runs."""
MOST_BATCH = 2048
"""Requests that any engine has under way at once (TensorRT-LLM's default; vLLM and SGLang count fewer)."""
FEW = 8
"""Below so many requests a GB more or less decides the batch."""


@dataclass(frozen=True, slots=True)
class Room:
    """Requests that are in memory at once: as the engine reserves memory, and with nothing reserved at all.

    `refusal`: why the engine would not start at all.
    """

    fitting: int
    most: int
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The answer. Times are None where the plan does not fit; then `problem` says why.

    `limit`: what limits a step, where its operators are not at hand.
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
        """What decides the speed of a token."""
        return self.limit if self.decode is None else self.decode.limited_by


def estimate(study: Study, asked: Asked, room: Room) -> Estimate:
    """Times of `asked` with `room` for so many requests at once.

    Raises SpecError for a device without bandwidth or peak, also where nothing fits.
    """
    steps = Steps(study=study, asked=asked)
    batch = 0 if steps.device and room.refusal else _batch(asked, room.fitting)
    if not batch:
        return Estimate(asked=asked, batch=0, fits=False, problem=room.refusal or shortage(asked, room.fitting))
    if asked.load is Load.STATIC:
        return _static(steps, batch)
    return _closed(steps, batch) if asked.load is Load.CLOSED else _max_load(steps, batch, room.most)


def at_once(steps: Steps, batches: Any) -> Estimate:
    """Static batches, or clients of a closed loop (two and more), all of which fit: an array of them at once."""
    return _static(steps, batches) if steps.asked.load is Load.STATIC else _closed(steps, batches)


def _batch(asked: Asked, fitting: int) -> int:
    """Requests in a step; 0 where the plan does not fit."""
    if asked.load is Load.STATIC:
        return 0 if (asked.count or 1) > fitting else asked.count or 1
    most = min(max(0, fitting), MOST_BATCH)
    return most if asked.count is None else min(asked.count, most)


def shortage(asked: Asked, fitting: int) -> str:
    """Why requests do not fit, of which `fitting` would."""
    whole = f"{asked.context:,} tokens ({asked.prompt_tokens:,} prompt, {asked.new_tokens:,} generated)"
    if fitting < 1:
        return f"no request of {whole} fits beside the weights"
    return f"{fitting:,} requests of {whole} fit, not {asked.count:,}"


def _static(steps: Steps, batch: Any) -> Estimate:
    prefill_s, least_s = steps.prefill_s(batch)
    ttft = _band(steps, "ttft").around(prefill_s, least_s)
    return _answer(steps, batch, ttft, _per_token(steps, batch))


def _closed(steps: Steps, batch: Any) -> Estimate:
    """While one request makes its tokens, each other client sends one prompt, which is computed between its steps."""
    prefill_s, least_s = steps.prefill_s()
    between_s = (batch - 1) * steps.prompt_share_s / steps.asked.new_tokens
    tpot = _per_token(steps, batch, between_s=between_s)
    waiting = 1 + QUEUE_FACTOR * maximum(batch / steps.asked.dp_attention - 1, 0.0) ** 0.5
    step_s = (steps.step(batch).expected_s + steps.host_s) * (batch > 1)
    return _answer(steps, batch, _band(steps, "ttft").around(prefill_s * waiting + step_s, least_s), tpot)


def _max_load(steps: Steps, batch: int, most: int) -> Estimate:
    """Every request's prompt and tokens pass through the device; its memory is full of requests half done."""
    _, least_s = steps.prefill_s()
    tpot = _per_token(steps, batch, between_s=batch * steps.prompt_share_s / steps.asked.new_tokens)
    alone = steps.decode(1, steps.asked.prompt_tokens).bound_s / steps.asked.step_tokens
    waited_s = (batch + 1) / 2 * steps.prompt_share_s + steps.step(batch).expected_s
    ttft = _band(steps, "ttft").around(waited_s, least_s)
    answer = _answer(steps, batch, ttft, replace(tpot, bound=min(tpot.bound, alone)))
    assert answer.output_rate is not None
    return replace(answer, output_rate=answer.output_rate.capped(_most_tokens(steps, max(batch, most))))


def _most_tokens(steps: Steps, most: int) -> Any:
    """Tokens per second that nothing beats: the whole memory full, steps and prompts overlapping with each other."""
    decode, prefill = steps.decode(most, steps.asked.prompt_tokens), steps.prefill(steps.asked.dp_attention)
    new_tokens, each = steps.asked.new_tokens, steps.asked.step_tokens
    prompts_s = most / steps.asked.dp_attention * prefill.least_compute_s
    compute_s = new_tokens * decode.least_compute_s / each + prompts_s
    return steps.asked.stages * most * new_tokens / max(compute_s, new_tokens * decode.least_memory_s / each)


def _per_token(steps: Steps, batch: Any, *, between_s: Any = 0.0) -> Span:
    """The time per token: a step with the host's part, over its tokens, and the prompts of others in between."""
    each, (drafting_s, least_drafting_s) = steps.asked.step_tokens, steps.drafting(batch)
    expected_s = (steps.step(batch).expected_s + steps.host_s + drafting_s) / each + between_s
    return _band(steps, "tpot").around(expected_s, (steps.least_step_s(batch) + least_drafting_s) / each)


def _answer(steps: Steps, batch: Any, ttft: Span, tpot: Span) -> Estimate:
    asked = steps.asked
    e2e = ttft + tpot.times(asked.new_tokens - 1)
    # In a closed loop and at maximum load the prompts of the others are in the time per token already.
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
