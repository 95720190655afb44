"""The derivation of an operator's time, step by step: the computation of `kernels.timed` as formulas for display."""

from __future__ import annotations

from typing import Any

from calc.explain.terms import Term, derive, maximum
from calc.speed.asked import Asked, Load
from calc.speed.kernels import Device, filling, fullest_rank, link_of, reach_of, start_of
from calc.speed.steps import Steps
from calc.step.operators import BETWEEN_RANKS, NONE, Operator, Pass


def reached_flops_per_s(*, peak_flops_per_s: Any, peak_share: Any) -> Any:
    """Achieved FLOP/s of an operator."""
    return peak_flops_per_s * peak_share


def reached_bytes_per_s(*, bandwidth_bytes_per_s: Any, bandwidth_share: Any) -> Any:
    """Achieved B/s of an operator."""
    return bandwidth_bytes_per_s * bandwidth_share


def one_run_s(
    *,
    start_s: Any,
    run_flops: Any,
    flops_per_s: Any,
    run_bytes: Any,
    bytes_per_s: Any,
    filling: Any = 1,
    fullest_flops: Any = 1,
    fullest_bytes: Any = 1,
) -> Any:
    """The launch overhead plus the longer of compute and memory time."""
    compute_s = run_flops * filling * fullest_flops / flops_per_s
    return start_s + maximum(compute_s, run_bytes * fullest_bytes / bytes_per_s)


def one_exchange_s(*, start_s: Any, link_bytes: Any, bytes_per_s: Any) -> Any:
    """The latency plus the time to send a rank's data to the others."""
    return start_s + link_bytes / bytes_per_s


def all_runs_s(*, count: Any, run_s: Any) -> Any:
    """All runs of a pass, one after the other."""
    return count * run_s


def flops_per_byte(*, run_flops: Any, run_bytes: Any) -> Any:
    """Arithmetic intensity."""
    return run_flops / run_bytes


def time_terms(operator: Operator, work: Pass, device: Device) -> tuple[Term, ...]:
    """The time of all runs of `operator` in the pass `work`, then each step that leads to it."""
    run, *steps = _exchange(operator, work, device) if operator.kind in BETWEEN_RANKS else _run(operator, work, device)
    whole = derive("Time in the pass", all_runs_s, unit="s", count=operator.count, run_s=run.value)
    return (whole, run, *steps, *operator.terms)


def _exchange(operator: Operator, work: Pass, device: Device) -> tuple[Term, ...]:
    start_s, bytes_per_s = link_of(operator, work, device)
    sizes: dict[str, Any] = {"start_s": start_s, "link_bytes": operator.link_each.value, "bytes_per_s": bytes_per_s}
    return (derive("Time of one run", one_exchange_s, unit="s", **sizes),)


def _run(operator: Operator, work: Pass, device: Device) -> tuple[Term, ...]:
    reach, path = reach_of(operator, work, device)
    flops, moved = operator.flops_each.value, operator.bytes / operator.count
    peak, bandwidth = device.peaks[path], device.bandwidth_bytes_per_s
    arithmetic = derive(
        f"FLOP/s reached ({path})", reached_flops_per_s, unit="FLOP/s", peak_flops_per_s=peak, peak_share=reach.peak
    )
    memory = derive(
        "B/s reached", reached_bytes_per_s, unit="B/s", bandwidth_bytes_per_s=bandwidth, bandwidth_share=reach.bandwidth
    )
    amounts: dict[str, Any] = {"run_flops": flops, "run_bytes": moved}
    tiles = filling(operator, work) if device.tiled else 1.0
    fullest = fullest_rank(operator, work)
    factors = {"filling": tiles, "fullest_flops": fullest.compute, "fullest_bytes": fullest.memory}
    filled: dict[str, Any] = {name: factor for name, factor in factors.items() if factor != 1}
    run = derive(
        "Time of one run",
        one_run_s,
        unit="s",
        start_s=start_of(operator, reach),
        flops_per_s=arithmetic.value,
        bytes_per_s=memory.value,
        **amounts,
        **filled,
    )
    has_both = operator.flops_each is not NONE and moved
    intensity = (derive("Intensity", flops_per_byte, unit="FLOP/B", **amounts),) if has_both else ()
    return (run, *intensity, arithmetic, memory)


# A token


def token_s(*, step_s: Any, host_s: Any, step_tokens: Any = None, between_s: Any = None) -> Any:
    """Step time with host overhead divided by tokens per step, plus prompts of other requests in between."""
    own = step_s + host_s if step_tokens is None else (step_s + host_s) / step_tokens
    return own if between_s is None else own + between_s


def prompts_between_s(*, others: Any, prompt_s: Any, new_tokens: Any) -> Any:
    """While one request generates its tokens, each of the others sends one prompt."""
    return others * prompt_s / new_tokens


def tokens_per_s(*, token_s: Any) -> Any:
    """Tokens per second that one user sees."""
    return 1 / token_s


def token_terms(steps: Steps, batch: int) -> tuple[Term, ...]:
    """The expected time per token of a batch, the rate per user, and the prompts of others in between.

    The step time is the sum over its operators. The lower bound of an estimate is not part of this derivation.
    """
    asked = steps.asked
    between: tuple[Term, ...] = ()
    others = {Load.STATIC: 0, Load.CLOSED: batch - 1, Load.MAX: batch}[asked.load]
    shape: dict[str, Any] = {} if not asked.drafted else {"step_tokens": asked.step_tokens}
    if others:
        between = (_between(steps, asked, others),)
        shape["between_s"] = float(between[0].value)
    step_s = steps.step(batch).expected_s
    time = derive("Expected time per token", token_s, unit="s", step_s=step_s, host_s=steps.host_s, **shape)
    seen = derive("Tokens per user", tokens_per_s, unit="tokens/s", token_s=time.value)
    return (time, *between, seen)


def _between(steps: Steps, asked: Asked, others: int) -> Term:
    sizes: dict[str, Any] = {"others": others, "prompt_s": steps.prompt_share_s, "new_tokens": asked.new_tokens}
    return derive("Other requests' prompts, per token", prompts_between_s, unit="s", **sizes)
