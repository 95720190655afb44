"""The work of a latency sweep as calc predicts it: FLOPs, bytes and least times with and without the cache. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calc.intensity.roofline import bound_s, decode_bytes, prefill_flops
from calc.intensity.traffic import attention_flops, linear_flops, linear_params
from calc.model.spec import ModelSpec
from engine.records import ModelInfo
from tui.live.predict import cache_token_term, spec_of, step_weight_bytes

Pass = tuple[float, float]
"""FLOPs and bytes of one pass through the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmWork:
    """One way at one prompt length. `least_s` is the roofline with this machine's rates; None if there are none."""

    flops: float
    moved_bytes: float
    least_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepWork:
    """Both ways at one prompt length."""

    prompt_tokens: int
    with_cache: ArmWork
    without_cache: ArmWork


def sweep_work(info: ModelInfo, lengths: Sequence[int], *, new_tokens: int) -> tuple[SweepWork, ...]:
    """The work of the runs of a sweep.

    With the cache: one pass over the prompt, then a one-token pass for each new token except the first. Without it: for
    each new token, a pass over all tokens so far. Every pass reads the weights once; a one-token pass also reads the
    cache.
    """
    spec = spec_of(info)
    weights, token = step_weight_bytes(info), float(cache_token_term(info).value)

    def whole(n_tokens: int) -> Pass:
        attention = attention_flops(spec) * n_tokens**2
        return float(prefill_flops(spec, n_tokens, attention_flops=attention)), weights

    def step(n_tokens: int) -> Pass:
        moved = decode_bytes(weight_bytes=weights, kv_token_bytes=token, context=n_tokens)
        return step_flops(spec, n_tokens), float(moved)

    work = []
    for length in lengths:
        texts = range(length, length + new_tokens)
        cached = [whole(length), *(step(n) for n in texts[1:])]
        work.append(
            SweepWork(
                prompt_tokens=length,
                with_cache=_arm(info, cached),
                without_cache=_arm(info, [whole(n) for n in texts]),
            )
        )
    return tuple(work)


def step_flops(spec: ModelSpec, n_tokens: int) -> float:
    """FLOPs of a one-token pass that attends to `n_tokens`."""
    return float(linear_flops(batch=1, parameters=linear_params(spec))) + attention_flops(spec) * n_tokens


def _arm(info: ModelInfo, passes: Sequence[Pass]) -> ArmWork:
    read, multiply = info.read_bytes_per_s, info.matmul_flops_per_s
    least_s = None
    if read and multiply:
        rates = {"bytes_per_s": read, "flops_per_s": multiply}
        least_s = sum(float(bound_s(moved_bytes=moved, flops=flops, **rates)) for flops, moved in passes)
    return ArmWork(flops=sum(f for f, _ in passes), moved_bytes=sum(m for _, m in passes), least_s=least_s)
