"""What ``estimate`` is asked: its options, the study and the load that they describe."""

from __future__ import annotations

import argparse
from dataclasses import replace
from fractions import Fraction

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
from calc.errors import QuantityError, SpecError
from calc.model.spec import ModelSpec
from calc.model.study import DeviceSpec, Policy, Study
from calc.speed.asked import ENGINES, Asked, Load
from calc.units import parse_count, parse_share

MOST_DRAFTED = 256
"""Maximum tokens drafted per step."""


def drafts(text: str) -> tuple[int, Fraction]:
    """``4,0.8``: tokens drafted per step, and the probability that each is accepted. Raises QuantityError."""
    drafted, comma, accepted = text.partition(",")
    if not comma:
        raise QuantityError(f"{text!r} is not K,A: tokens drafted per step and acceptance rate, such as 4,0.8")
    return parse_count(drafted, what="drafted tokens", maximum=MOST_DRAFTED), parse_share(accepted)


def price(text: str) -> float:
    """A price per device and hour. Raises QuantityError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise QuantityError(f"{text!r} is not a price per device and hour, such as 2.5")
    return value


def prices(text: str) -> tuple[float, ...]:
    """One price, or one for each of ``--devices``. Raises QuantityError."""
    return tuple(price(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas. Raises QuantityError."""
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise QuantityError("expected one or more names, separated by commas")
    return found


def estimate_parser(prog: str) -> Parser:
    """Options of ``estimate``."""
    parser = Parser(prog=prog, description="TTFT, TPOT and tokens per second of a load, with a bound and a band.")
    add_study_options(parser)
    _add_load_options(parser.add_argument_group("served load"))
    _add_engine_options(parser.add_argument_group("engine"))
    add_output_options(parser)
    return parser


def _add_load_options(served: argparse._ArgumentGroup) -> None:
    served.add_argument("--prompt-tokens", type=count, default=1024, metavar="P", help="prompt tokens (default 1024)")
    served.add_argument("--new-tokens", type=count, default=256, metavar="G", help="generated tokens (default 256)")
    load = served.add_mutually_exclusive_group()
    load.add_argument("--batch", type=count, metavar="B", help="requests in one static batch (default 1)")
    load.add_argument(
        "--concurrency", type=count, metavar="C", help="clients; each sends its next request when the last one ends"
    )
    load.add_argument("--max-load", action="store_true", help="full load: as many requests at once as fit")
    served.add_argument("--batches", type=counts, metavar="1..256", help="one row per batch size or number of clients")
    add_limit_option(served)
    served.add_argument("--price", type=reader(prices), metavar="X", help="price per device and hour")
    served.add_argument(
        "--devices", type=reader(names), metavar="A,B|all", help="several devices side by side, or the whole catalog"
    )
    served.add_argument(
        "--prefix-hit", type=reader(parse_share), metavar="F", help="share of the prompt already in the cache"
    )
    served.add_argument("--chunk", type=count, metavar="N", help="tokens per prefill chunk")
    served.add_argument(
        "--speculate",
        type=reader(drafts),
        metavar="K,A",
        help="K draft tokens per step, each accepted with probability A",
    )
    served.add_argument("--draft", metavar="NAME|PATH", help="draft model, so that its time is counted")


def _add_engine_options(engine: argparse._ArgumentGroup) -> None:
    engine.add_argument("--tp", type=count, default=1, metavar="X", help="tensor-parallel degree (default 1)")
    engine.add_argument(
        "--pp", type=count, default=1, metavar="N", help="pipeline stages of TP devices each (default 1)"
    )
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
        type=policy_among(ENGINES, "is a rule for memory, not an engine"),
        metavar="|".join(ENGINES),
        default="vllm",
        help="engine (default vllm)",
    )
    engine.add_argument("--engine-version", metavar="V", help="such as 0.19.0")


def served(args: argparse.Namespace, asked: Asked, *, device: DeviceSpec | None = None) -> tuple[Study, Asked]:
    """The study as the engine runs it, and the question, with the sizes that it reads from the model.

    `device` replaces the one that the options name. Raises CalcError.
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
    """`study` with the formats that the engine of `asked` chooses if none is given."""
    from calc.servers.names import ENGINES as SERVERS
    from calc.servers.records import ModelFacts, ServerOptions
    from calc.servers.serving import as_served

    if asked.engine not in SERVERS:
        return study
    options = ServerOptions(engine=asked.engine, version=asked.version, tp=asked.tp, facts=asked.facts or ModelFacts())
    return as_served(study, options, weights_given=weights_given, cache_given=cache_given)


def asked_from(args: argparse.Namespace) -> Asked:
    """The question that the options ask. Raises SpecError."""
    load = Load.MAX if args.max_load else Load.CLOSED if args.concurrency else Load.STATIC
    drafted, acceptance = args.speculate or (0, Fraction(0))
    if args.chunk is not None and load is Load.MAX:
        raise SpecError("chunk", "--chunk has no effect with --max-load: give only one of them")
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
        raise SpecError("draft", "--draft needs --speculate K,A")
    from calc.sources import load_model

    return load_model(args.draft)
