"""``solve --limit``: which batch, TP and device, and how many devices, meet latency limits."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calc.commands.documents import Document
from calc.commands.estimate_options import served
from calc.commands.options import DEFAULT_CONTEXT, SERVER_OPTIONS
from calc.commands.output import emit_json, emit_tables
from calc.commands.tables import Column, Row, Table
from calc.errors import SpecError
from calc.model.study import Policy
from calc.sources.catalog import devices
from calc.speed.asked import ENGINES, Asked
from calc.speed.estimate import estimate
from calc.speed.plans import Plan, fewest, largest_plan, plans_by_device, plans_by_tp
from calc.speed.room import room_of
from calc.units import Quantity, format_count, format_duration_s, format_number

if TYPE_CHECKING:
    from calc.commands.output import Answer
    from calc.model.study import Study

FINDS = ("batch", "tp", "devices", "device")
DEFAULT_PROMPT, DEFAULT_NEW = 1024, 256


def run_with_limits(args: argparse.Namespace) -> int:
    """``solve --limit``. The exit code is 0 even if nothing meets the limits (that is an answer)."""
    _check_idle(args)
    finds = _finds(args)
    study, asked = served(args, _asked(args))
    found = {find: _found(find, study, asked, args) for find in finds}
    if args.format == "json":
        return emit_json(args, _document(study, asked, found, args))
    return emit_tables(args, *_text(study, asked, found, args))


def _finds(args: argparse.Namespace) -> tuple[str, ...]:
    if args.find == "all":
        return FINDS if args.rate is not None else tuple(find for find in FINDS if find != "devices")
    if args.find not in FINDS:
        raise SpecError("find", f"--limit answers {', '.join(FINDS)}, not --find {args.find}")
    if args.find == "devices" and args.rate is None:
        raise SpecError("rate", "the number of devices depends on the load: add --rate in requests per second")
    return (args.find,)


def _asked(args: argparse.Namespace) -> Asked:
    engine = "vllm" if args.policy == str(Policy.EQUAL_SPLIT) else args.policy
    if engine not in ENGINES:
        raise SpecError("policy", f"--limit needs an engine: --policy {', '.join(ENGINES)}")
    return Asked(
        engine=engine,
        version=args.engine_version,
        prompt_tokens=args.prompt_tokens or DEFAULT_PROMPT,
        new_tokens=args.new_tokens or DEFAULT_NEW,
        tp=args.tp,
    )


def _check_idle(args: argparse.Namespace) -> None:
    """Raise SpecError for options that have no effect on time."""
    names = [name for name in SERVER_OPTIONS if name != "engine_version" and getattr(args, name, None)]
    names += [name for name, default in (("context", DEFAULT_CONTEXT), ("batch", 1)) if getattr(args, name) != default]
    if names:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise SpecError(
            names[0],
            f"{words} has no effect with --limit: use --prompt-tokens, --new-tokens and --engine-version",
        )


def _found(find: str, study: Study, asked: Asked, args: argparse.Namespace) -> list[Plan]:
    """The plans that answer a question, best first."""
    if find == "device":
        known = [entry.spec for entry in devices().values()]
        plans = list(plans_by_device(study, asked, args.limit, known))
        return sorted(plans, key=lambda plan: -plan.tokens_per_s_per_device)
    if find == "batch":
        plan = largest_plan(study, asked, args.limit)
        return [] if plan is None else [plan]
    plans = plans_by_tp(study, asked, args.limit, args.most)
    if find == "tp":
        return sorted(plans, key=lambda plan: -plan.tokens_per_s_per_device)
    best = fewest(plans, args.rate)
    others = sorted((plan for plan in plans if plan is not best), key=lambda plan: plan.devices(args.rate))
    return [] if best is None else [best, *others]


# --- JSON ---------------------------------------------------------------------------------------------------


def _document(study: Study, asked: Asked, found: dict[str, list[Plan]], args: argparse.Namespace) -> Document:
    return {
        "command": "solve",
        "schema": 1,
        "model": study.model.title,
        "device": study.device.name,
        "policy": asked.engine,
        "limits_s": dict(args.limit),
        "rate": args.rate,
        "prompt_tokens": asked.prompt_tokens,
        "new_tokens": asked.new_tokens,
        "answers": {find: [_plan(plan, args.rate) for plan in plans] for find, plans in found.items()},
        "notes": _notes(study, asked, found, args),
    }


def _plan(plan: Plan, rate: float | None) -> dict[str, Any]:
    answer = plan.answer
    assert answer.ttft is not None
    assert answer.tpot is not None
    served = {} if rate is None else {"replicas": plan.replicas(rate), "devices": plan.devices(rate)}
    return {
        "device": plan.device,
        "tp": plan.tp,
        "batch": plan.batch,
        "ttft_s": answer.ttft.mid,
        "tpot_s": answer.tpot.mid,
        "requests_per_s": plan.requests_per_s,
        "output_tokens_per_s_per_device": plan.tokens_per_s_per_device,
        **served,
    }


# --- text ---------------------------------------------------------------------------------------------------

TITLES = {
    "batch": "Largest batch",
    "tp": "Tensor parallelism, most tokens/s per device first",
    "devices": "Fewest devices",
    "device": "Catalog devices, most tokens/s per device first",
}


def _text(study: Study, asked: Asked, found: dict[str, list[Plan]], args: argparse.Namespace) -> Answer:
    limits = ", ".join(f"{name.upper()} {format_duration_s(value)}" for name, value in args.limit.items())
    heading = f"{study.model.title} on {study.device.name} within {limits}, {asked.engine}"
    heading += f", {asked.prompt_tokens:,} prompt tokens, {asked.new_tokens:,} generated"
    tables = [_table(TITLES[find], plans, args.rate if find == "devices" else None) for find, plans in found.items()]
    return heading, tables, _notes(study, asked, found, args)


def _table(title: str, plans: list[Plan], rate: float | None) -> Table:
    served = () if rate is None else ("Devices", "Replicas")
    names = ("TP", "Clients", "TTFT", "TPOT", "Requests/s", "Tokens/s per device")
    columns = (*(Column(name, numeric=True) for name in served), Column("Device"))
    numbers = tuple(Column(name, numeric=True) for name in names)
    return Table(title=title, columns=(*columns, *numbers), rows=[_row(plan, rate) for plan in plans])


def _row(plan: Plan, rate: float | None) -> Row:
    answer = plan.answer
    assert answer.ttft is not None
    assert answer.tpot is not None
    served = () if rate is None else (format_count(plan.devices(rate)), format_count(plan.replicas(rate)))
    speed = Quantity(f"{plan.tokens_per_s_per_device:,.0f}", plan.tokens_per_s_per_device, "tokens/s")
    requests = format_number(plan.requests_per_s, "requests/s")
    times = (format_duration_s(answer.ttft.mid), format_duration_s(answer.tpot.mid))
    return Row((*served, plan.device, format_count(plan.tp), format_count(plan.batch), *times, requests, speed))


def _notes(study: Study, asked: Asked, found: dict[str, list[Plan]], args: argparse.Namespace) -> list[str]:
    notes = ["Clients in a closed loop. The expected times meet the limits; the high ends of their bands may not."]
    if found.get("devices"):
        best = found["devices"][0]
        notes.insert(0, f"Use {_devices(best, args.rate)}: {format_number(args.rate)} requests per second.")
    missing = [find for find, plans in found.items() if not plans]
    if missing:
        alone = estimate(study, replace(asked, count=1), room_of(study, replace(asked, count=1)))
        notes.insert(0, f"No {' and no '.join(missing)} meets the limits. {_alone(alone.problem, alone)}")
    return notes


def _devices(plan: Plan, rate: float) -> str:
    replicas = plan.replicas(rate)
    each = f"{replicas} x TP {plan.tp}" if replicas > 1 else f"TP {plan.tp}"
    return f"{plan.devices(rate):,} x {plan.device} ({each})"


def _alone(problem: str | None, alone: Any) -> str:
    if alone.ttft is None or alone.tpot is None:
        return f"Here {problem}."
    ttft, tpot = format_duration_s(alone.ttft.mid), format_duration_s(alone.tpot.mid)
    return f"A single request takes {ttft} to its first token and {tpot} per token."
