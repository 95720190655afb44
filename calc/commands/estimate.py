"""``estimate``: TTFT, TPOT and throughput of a load on a device, with a bound, a middle and a band."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from calc.commands.estimate_document import estimate_document
from calc.commands.estimate_tables import answer_table, frontier_table, operator_table
from calc.commands.estimate_words import assumptions, crossings, sentence
from calc.commands.frontier import Row, frontier, judged
from calc.commands.options import (
    Parser,
    add_limit_option,
    add_output_options,
    add_study_options,
    count,
    counts,
    device_from,
    formats_from,
    model_from,
    policy_among,
    reader,
)
from calc.commands.output import emit_json, emit_tables
from calc.errors import QuantityError, SpecError
from calc.model.spec import DeviceSpec, ModelSpec, Policy, Study
from calc.speed.estimate import ENGINES, Asked, Estimate, Load, estimate
from calc.speed.room import room_of
from calc.units import parse_count, parse_share

if TYPE_CHECKING:
    from calc.commands.output import Answer

MOST_DRAFTED = 256
"""Tokens drafted per step: no draft is as long."""


def drafts(text: str) -> tuple[int, Fraction]:
    """``4,0.8``: tokens drafted per step, and the share of them that is accepted. Raises QuantityError."""
    drafted, comma, accepted = text.partition(",")
    if not comma:
        raise QuantityError(f"{text!r} is not K,A: tokens drafted per step and their acceptance, such as 4,0.8")
    return parse_count(drafted, what="drafted tokens", maximum=MOST_DRAFTED), parse_share(accepted)


def price(text: str) -> float:
    """Money per device and hour. Raises QuantityError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise QuantityError(f"{text!r} is not a price per device and hour, such as 2.5")
    return value


def prices(text: str) -> tuple[float, ...]:
    """A price, or one for each of ``--devices``. Raises QuantityError."""
    return tuple(price(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Names, separated by commas. Raises QuantityError."""
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise QuantityError("expected one or more names, separated by commas")
    return found


def estimate_parser(prog: str) -> Parser:
    """Options of ``estimate``."""
    parser = Parser(prog=prog, description="TTFT, TPOT and tokens per second of a load, with a bound and a band.")
    add_study_options(parser)
    served = parser.add_argument_group("what is served")
    served.add_argument("--prompt-tokens", type=count, default=1024, metavar="P", help="tokens in (default 1024)")
    served.add_argument("--new-tokens", type=count, default=256, metavar="G", help="tokens out (default 256)")
    load = served.add_mutually_exclusive_group()
    load.add_argument("--batch", type=count, metavar="B", help="one static batch (default 1)")
    load.add_argument(
        "--concurrency", type=count, metavar="C", help="clients; each sends its next request when the last one ends"
    )
    load.add_argument("--max-load", action="store_true", help="all requests at once: the batch is what fits")
    served.add_argument("--batches", type=counts, metavar="1..256", help="a row for each batch or number of clients")
    add_limit_option(served)
    served.add_argument("--price", type=reader(prices), metavar="X", help="price per device and hour")
    served.add_argument(
        "--devices", type=reader(names), metavar="A,B|all", help="several devices side by side, or the whole catalog"
    )
    served.add_argument(
        "--prefix-hit", type=reader(parse_share), metavar="F", help="share of the prompt that is already in the cache"
    )
    served.add_argument("--chunk", type=count, metavar="N", help="tokens of a prefill chunk")
    served.add_argument(
        "--speculate", type=reader(drafts), metavar="K,A", help="K draft tokens per step, each accepted with chance A"
    )
    served.add_argument("--draft", metavar="NAME|PATH", help="the draft model; its time is counted")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--tp", type=count, default=1, metavar="X", help="tensor-parallel degree (default 1)")
    engine.add_argument("--pp", type=count, default=1, metavar="N", help="pipeline stages of TP devices (default 1)")
    engine.add_argument(
        "--ep", type=count, default=1, metavar="N", help="expert-parallel degree, within the TP devices"
    )
    engine.add_argument(
        "--dp-attention", type=count, default=1, metavar="N", help="attention groups with their own requests"
    )
    engine.add_argument(
        "--dcp", type=count, default=1, metavar="N", help="devices that share the tokens of repeated KV heads (vllm)"
    )
    engine.add_argument(
        "--policy",
        type=policy_among(ENGINES, "is a rule of memory, not an engine"),
        metavar="|".join(ENGINES),
        default="vllm",
        help="engine (default vllm)",
    )
    engine.add_argument("--engine-version", metavar="V", help="such as 0.19.0")
    add_output_options(parser)
    return parser


def run_estimate(argv: Sequence[str], prog: str) -> int:
    """``estimate``: exit code 0, also where the plan does not fit (that is an answer)."""
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


def served(args: argparse.Namespace, asked: Asked, *, device: DeviceSpec | None = None) -> tuple[Study, Asked]:
    """The study as the engine runs it, and what is asked, with what it reads of the model.

    `device`: instead of the one that the options name. Raises CalcError.
    """
    from calc.servers.facts import facts_of

    model = model_from(args)
    study = Study(
        model=model,
        device=device or device_from(args),
        context=asked.context,
        tps=(asked.tp,),
        policy=Policy.REPLICATED,
        **formats_from(args, model),
    )
    asked = replace(asked, facts=facts_of(args.model, model.name))
    given = {"weights_given": args.weight_format is not None, "cache_given": args.kv_format is not None}
    return as_run(study, asked, **given), asked


def as_run(study: Study, asked: Asked, *, weights_given: bool, cache_given: bool) -> Study:
    """`study` with the formats that the engine of `asked` chooses by itself where none is given."""
    from calc.servers.names import ENGINES as SERVERS
    from calc.servers.records import ModelFacts, ServerOptions
    from calc.servers.serving import as_served

    if asked.engine not in SERVERS:
        return study
    options = ServerOptions(engine=asked.engine, version=asked.version, tp=asked.tp, facts=asked.facts or ModelFacts())
    return as_served(study, options, weights_given=weights_given, cache_given=cache_given)


def asked_from(args: argparse.Namespace) -> Asked:
    """What the options ask for. Raises SpecError."""
    load = Load.MAX if args.max_load else Load.CLOSED if args.concurrency else Load.STATIC
    drafted, acceptance = args.speculate or (0, Fraction(0))
    if args.chunk is not None and load is Load.MAX:
        raise SpecError("chunk", "--chunk changes nothing at maximum load: give only one of them")
    return Asked(
        engine=args.policy,
        version=args.engine_version,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        load=load,
        count=None if load is Load.MAX else args.concurrency or args.batch or 1,
        tp=args.tp,
        pp=args.pp,
        ep=args.ep,
        dp_attention=args.dp_attention,
        dcp=args.dcp,
        chunk=args.chunk,
        prefix_hit=args.prefix_hit or Fraction(0),
        drafted=drafted,
        draft=_draft(args),
        acceptance=acceptance,
    )


def _draft(args: argparse.Namespace) -> ModelSpec | None:
    """The model of --draft. Raises CalcError."""
    if args.draft is None:
        return None
    if args.speculate is None:
        raise SpecError("draft", "--draft says who drafts: add --speculate K,A")
    from calc.sources import load_model

    return load_model(args.draft)


def _text(study: Study, answer: Estimate, rows: Sequence[Row], args: argparse.Namespace) -> Answer:
    parts = [answer_table(judged(answer, args.limit, _one_price(args)))]
    if rows:
        parts.append(frontier_table(rows))
    for title, time in ((_prefill_title(answer), answer.prefill), ("Decode step", answer.decode)):
        if time is not None:
            parts.append(operator_table(title, time))
    return sentence(study, answer), parts, [*crossings(study, answer), *assumptions(study, answer)]


def _prefill_title(answer: Estimate) -> str:
    """Of which pass the operators are: with chunks it is the one in the middle."""
    title, time = "Prefill, operator by operator", answer.prefill
    if time is None or time.work.queries == answer.asked.computed_tokens:
        return title
    return f"{title}: one chunk of {time.work.queries:,} of {answer.asked.computed_tokens:,} tokens"
