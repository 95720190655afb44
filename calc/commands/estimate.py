"""``estimate``: TTFT, TPOT and throughput of a load on a device, with a bound, a middle value and a band."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.estimate_document import estimate_document
from calc.commands.estimate_options import asked_from, estimate_parser, served
from calc.commands.estimate_tables import answer_table, frontier_table, operator_table
from calc.commands.estimate_words import assumptions, crossings, sentence
from calc.commands.frontier import Row, frontier, judged
from calc.commands.options import device_from
from calc.commands.output import emit_json, emit_tables
from calc.errors import SpecError
from calc.model.study import DeviceSpec, Study
from calc.speed.estimate import Estimate, estimate
from calc.speed.room import room_of

if TYPE_CHECKING:
    from calc.commands.output import Answer


def run_estimate(argv: Sequence[str], prog: str) -> int:
    """``estimate``. The exit code is 0 even if the plan does not fit (that is an answer)."""
    args = estimate_parser(prog).parse_args(argv)
    if args.devices is not None:
        from calc.commands.estimate_devices import run_devices

        return run_devices(args, asked_from(args))
    study, asked = served(args, asked_from(args), device=_one_device(args))
    answer = estimate(study, asked, room_of(study, asked))
    rows = list(frontier(study, asked, args.batches or (), limits=args.limit, price=_one_price(args)))
    if args.format == "json":
        return emit_json(args, estimate_document(study, answer, rows, args))
    return emit_tables(args, *_text(study, answer, rows, args))


def _one_device(args: argparse.Namespace) -> DeviceSpec:
    if args.device is not None and "," in args.device:
        raise SpecError("device", f"--device takes one name: --devices {args.device} compares several")
    return device_from(args)


def _one_price(args: argparse.Namespace) -> float | None:
    if args.price is not None and len(args.price) > 1:
        raise SpecError("price", f"{len(args.price)} prices for one device: give one, or name --devices")
    return None if args.price is None else float(args.price[0])


def _text(study: Study, answer: Estimate, rows: Sequence[Row], args: argparse.Namespace) -> Answer:
    parts = [answer_table(judged(answer, args.limit, _one_price(args)))]
    if rows:
        parts.append(frontier_table(rows))
    for title, time in ((_prefill_title(answer), answer.prefill), ("Decode step", answer.decode)):
        if time is not None:
            parts.append(operator_table(title, time))
    return sentence(study, answer), parts, [*crossings(study, answer), *assumptions(study, answer)]


def _prefill_title(answer: Estimate) -> str:
    """The pass whose operators are shown; with chunks, the middle one."""
    title, time = "Prefill, operator by operator", answer.prefill
    if time is None or time.work.queries == answer.asked.computed_tokens:
        return title
    return f"{title}: one chunk of {time.work.queries:,} of {answer.asked.computed_tokens:,} tokens"
