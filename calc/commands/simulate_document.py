"""The JSON document of ``simulate``. Scripts rely on the keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.documents import Document
from calc.commands.simulate_tables import notes
from calc.model.spec import DIMENSIONS
from calc.simulate.summary import NEEDED

if TYPE_CHECKING:
    from calc.commands.simulate import Point, Simulated
    from calc.simulate.summary import Outcome, Spread


def document(answer: Simulated) -> Document:
    """What ``simulate --json`` prints."""
    model, load = answer.study.model, answer.load
    return {
        "command": "simulate",
        "schema": 1,
        "model": {"name": model.title, **{n: getattr(model, n) for n in DIMENSIONS}, "source": model.provenance},
        "device": answer.study.device.name,
        "policy": "vllm",
        "engine_version": answer.served.version,
        "tp": answer.asked.tp,
        "ep": answer.asked.ep,
        "fits": load is not None,
        "server": _server(answer),
        "load": _load(answer),
        "full_load_requests_per_s": None if load is None else load.full_load,
        "runs": [run_document(answer, point) for point in answer.points],
        "found": _found(answer),
        "notes": ([f"{answer.problem}."] if answer.problem else []) + notes(answer),
    }


def _server(answer: Simulated) -> Document | None:
    server = answer.served.server
    if server is None:
        return None
    return {
        "max_num_batched_tokens": server.step_tokens,
        "max_num_seqs": server.sequences,
        "kv_blocks": server.blocks,
        "block_size": server.block_tokens,
        "prefix_caching": server.caching,
    }


def _load(answer: Simulated) -> Document:
    args, requests = answer.args, answer.requests
    closed = args.concurrency is not None or args.find == "users"
    return {
        "kind": "trace" if args.trace else "closed" if closed else args.arrivals or "poisson",
        "requests": len(requests),
        "seed": args.seed or 0,
        "think_s": args.think or 0.0,
        "prompt_tokens": _lengths([one.prompt_tokens for one in requests]),
        "new_tokens": _lengths([one.new_tokens for one in requests]),
        "prefix_hit": float(args.prefix_hit or 0),
        "prefixes": 0 if args.prefix_hit is None else args.prefixes or 1,
        "limits_s": args.limit,
        "percentile": answer.percentile,
    }


def _lengths(tokens: Sequence[int]) -> Document:
    return {"mean": sum(tokens) / len(tokens), "min": min(tokens), "max": max(tokens)}


def run_document(answer: Simulated, point: Point) -> Document:
    """One load."""
    used, course = answer.utilization(point), point.seen.course
    return {
        "rate": point.rate,
        "users": point.users,
        "utilization": used,
        "stable": None if used is None else used < 1,
        **_numbers(answer, point.seen),
        "band": _band(answer, point),
        "over_time": {
            "time_s": list(course.time_s),
            "waiting": list(course.waiting),
            "running": list(course.running),
            "kv_used_share": list(course.cache),
        },
    }


def _numbers(answer: Simulated, seen: Outcome) -> Document:
    aim, course = answer.aim, seen.course
    return {
        "requests": seen.requests,
        "window_s": seen.window_s,
        "requests_per_s": seen.requests_per_s,
        "output_tokens_per_s": seen.output_tokens_per_s,
        "ttft_s": _spread(seen.ttft),
        "tpot_s": _spread(seen.tpot),
        "e2e_s": _spread(seen.e2e),
        "wait_s": _spread(seen.wait),
        "goodput_per_s": seen.goodput_per_s,
        "goodput_share": seen.goodput_share,
        "keeps_limits": None if aim is None else seen.keeps(aim.limits, aim.percent),
        "preemptions": seen.preemptions,
        "prompt_tokens": seen.prompt_tokens,
        "output_tokens": seen.output_tokens,
        "cached_tokens": seen.cached_tokens,
        "recomputed_tokens": seen.recomputed_tokens,
        "computed_tokens": seen.computed_tokens,
        "steps": seen.steps,
        "busy_share": seen.busy_share,
        "running_mean": sum(course.running) / len(course.running),
        "waiting_mean": sum(course.waiting) / len(course.waiting),
        "waiting_most": seen.waiting_most,
        "kv_used_mean_share": sum(course.cache) / len(course.cache),
        "kv_used_most_share": seen.cache_most,
    }


def _spread(spread: Spread | None) -> Document | None:
    """Percentiles; null if there are too few requests for one."""
    if spread is None:
        return None
    return {"mean": spread.mean, **{f"p{at}": spread.said(at) for at in NEEDED}, "max": spread.values[-1]}


def _band(answer: Simulated, point: Point) -> Document | None:
    """The same load with steps at both ends of their band; null if there are several loads."""
    if point.fast is None or point.slow is None:
        return None
    ends = (("low", answer.band.low, point.fast), ("high", answer.band.high, point.slow))
    return {name: {"step_factor": factor, **_numbers(answer, seen)} for name, factor, seen in ends}


def _found(answer: Simulated) -> Document | None:
    found = answer.found
    if found is None:
        return None
    return {
        "find": answer.args.find,
        "value": found.value,
        "above": found.above,
        "breaks_above": list(found.broken),
    }
