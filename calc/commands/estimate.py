"""``estimate``: TTFT, TPOT and throughput of a load on a device, with a bound, a middle and a band."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from calc.commands.documents import Document
from calc.commands.estimate_tables import answer_table, frontier_table, operator_table
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
from calc.model.spec import DIMENSIONS, DeviceSpec, ModelSpec, Policy, Study
from calc.speed.accuracy import accuracy_of
from calc.speed.crossings import cache_over_weights, compute_bound_batch, speculation_pays_to
from calc.speed.estimate import ENGINES, FEW, Asked, Estimate, Load, Steps, estimate, has_experts
from calc.speed.plans import Broken, broken_limits
from calc.speed.room import by_server, room_of
from calc.units import format_duration_s, parse_count, parse_share

if TYPE_CHECKING:
    from calc.commands.output import Answer
    from calc.speed.passes import PassTime
    from calc.speed.spans import Span

MOST_DRAFTED = 256
"""Tokens drafted per step: no draft is as long."""


@dataclass(frozen=True, slots=True)
class Row:
    """A point of the frontier: the estimate of a batch, the limits it breaks (None: there are none), what it costs.

    `cost`: money per million tokens out; None where no price is given or the batch does not fit.
    """

    batch: int
    answer: Estimate
    broken: tuple[Broken, ...] | None = None
    cost: float | None = None

    @property
    def meets_limits(self) -> bool | None:
        """Whether the expected times keep every limit."""
        return None if self.broken is None else self.answer.fits and not self.broken


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
    served.add_argument("--price", type=reader(prices), metavar="X", help="money per device and hour")
    served.add_argument(
        "--devices", type=reader(names), metavar="A,B|all", help="several devices side by side, or the whole catalog"
    )
    served.add_argument(
        "--prefix-hit", type=reader(parse_share), metavar="F", help="share of the prompt that is found in the cache"
    )
    served.add_argument("--chunk", type=count, metavar="N", help="tokens of a prefill chunk")
    served.add_argument("--speculate", type=reader(drafts), metavar="K,A", help="K drafted tokens, acceptance A each")
    served.add_argument("--draft", metavar="NAME|PATH", help="the model that drafts them, whose time is counted")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--tp", type=count, default=1, metavar="X", help="tensor-parallel degree (default 1)")
    engine.add_argument("--pp", type=count, default=1, metavar="N", help="pipeline stages of TP devices (default 1)")
    engine.add_argument("--ep", type=count, default=1, metavar="N", help="of the TP devices, those that share experts")
    engine.add_argument(
        "--dp-attention", type=count, default=1, metavar="N", help="attention groups with their own requests"
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
        raise SpecError("device", f"--device takes one name: --devices {args.device} puts several side by side")
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
    from calc.servers.records import ENGINES as SERVERS
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
        raise SpecError("chunk", "--chunk changes nothing at maximum load: leave one of them out")
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


def frontier(
    study: Study,
    asked: Asked,
    batches: Sequence[int],
    *,
    limits: Mapping[str, float] | None = None,
    price: float | None = None,
) -> Iterator[Row]:
    """A row for each batch or number of clients. At maximum load the rows are static batches. Raises SpecError."""
    load = Load.STATIC if asked.load is Load.MAX else asked.load
    each = [replace(asked, load=load, count=n) for n in batches]
    room = room_of(study, each[0]) if each else None
    for one in each:
        assert room is not None
        yield judged(estimate(study, one, room), limits, price)


def judged(answer: Estimate, limits: Mapping[str, float] | None = None, price: float | None = None) -> Row:
    """`answer` with the limits that it breaks, and its cost at `price` per device and hour."""
    broken = None if limits is None else broken_limits(answer, limits)
    batch = answer.asked.count if answer.asked.count is not None else int(answer.batch)
    return Row(batch, answer, broken, cost_per_million(answer, price))


def cost_per_million(answer: Estimate, price: float | None) -> float | None:
    """Money per million tokens out, at the expected rate and `price` per device and hour."""
    if price is None or answer.output_rate is None:
        return None
    return float(price * answer.asked.devices / 3600 / answer.output_rate.mid * 1e6)


# --- JSON ---------------------------------------------------------------------------------------------------


def estimate_document(study: Study, answer: Estimate, rows: Sequence[Row], args: argparse.Namespace) -> Document:
    """What ``estimate --json`` prints."""
    model, steps = study.model, Steps(study=study, asked=answer.asked)
    return {
        "command": "estimate",
        "schema": 1,
        "model": {
            "name": model.title,
            **{name: getattr(model, name) for name in DIMENSIONS},
            "source": model.provenance,
        },
        "device": study.device.name,
        "policy": answer.asked.engine,
        "tp": answer.asked.tp,
        "pp": answer.asked.pp,
        "ep": answer.asked.ep,
        "dp_attention": answer.asked.dp_attention,
        "n_devices": answer.asked.devices,
        "load": {"kind": str(answer.asked.load), "batch": answer.batch, "asked": answer.asked.count},
        "ttft_s": time_document(answer.ttft),
        "tpot_s": time_document(answer.tpot),
        "e2e_s": time_document(answer.e2e),
        "output_tokens_per_s": time_document(answer.output_rate),
        "tokens_per_s_per_user": band_document(answer.user_rate),
        "limited_by": answer.limited_by,
        "fits": answer.fits,
        "prefill": _pass(answer.prefill),
        "decode": _pass(answer.decode),
        "crossovers": {
            "batch_compute_bound": compute_bound_batch(steps),
            "context_kv_exceeds_weights": cache_over_weights(steps, max(1, int(answer.batch))),
        },
        "speculation": _speculation(steps, answer),
        "cost_per_million_output_tokens": cost_per_million(answer, None if args.price is None else args.price[0]),
        "frontier": [_row(row) for row in rows],
        "meets_limits": judged(answer, args.limit).meets_limits,
        "calibration": _calibration(study, steps),
        "assumptions": assumptions(study, answer),
    }


def time_document(span: Span | None) -> Document | None:
    return None if span is None else {"bound": span.bound, **(band_document(span) or {})}


def band_document(span: Span | None) -> Document | None:
    return None if span is None else {"low": span.low, "mid": span.mid, "high": span.high}


def _calibration(study: Study, steps: Steps) -> Document:
    """What the constants come from, and how far estimates of this kind were off (None: no such run is known)."""
    known, constants = accuracy_of(study, steps.asked), steps.device.constants
    return {
        "family": constants.family,
        "source": constants.source,
        "rows": 0 if known is None else known.rows,
        "pairs": 0 if known is None else known.pairs,
        "median_error": None if known is None else known.median_error,
        "band_covers": None if known is None else known.band_covers,
    }


def _speculation(steps: Steps, answer: Estimate) -> Document | None:
    """What drafting brings and takes; None where nothing is drafted."""
    asked = steps.asked
    if not asked.drafted:
        return None
    return {
        "drafted": asked.drafted,
        "acceptance": float(asked.acceptance),
        "tokens_per_step": asked.step_tokens,
        "draft_model": None if asked.draft is None else asked.draft.title,
        "drafting_s": None if asked.draft is None or not answer.fits else steps.drafting(int(answer.batch))[0],
        "pays_to_batch": speculation_pays_to(steps, room_of(steps.study, asked)),
    }


def _row(row: Row) -> Document:
    answer = row.answer
    return {
        "batch": row.batch,
        "ttft_s": time_document(answer.ttft),
        "tpot_s": time_document(answer.tpot),
        "output_tokens_per_s": time_document(answer.output_rate),
        "tokens_per_s_per_user": band_document(answer.user_rate),
        "fits": answer.fits,
        "meets_limits": row.meets_limits,
    }


def _pass(time: PassTime | None) -> Document | None:
    if time is None:
        return None
    operators = [
        {
            "name": one.operator.name,
            "count": one.operator.count,
            "flops": float(one.operator.flops),
            "bytes": float(one.operator.bytes),
            "intensity": float(one.operator.flops) / float(one.operator.bytes) if one.operator.bytes else 0.0,
            "limited_by": one.limited_by,
            "time_s": one.time_s,
        }
        for one in time.operators
    ]
    whole = {"flops": time.flops, "bytes": time.bytes, "time_s": time.expected_s, "tokens": time.work.tokens}
    return {**whole, "operators": operators}


# --- text ---------------------------------------------------------------------------------------------------


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


def sentence(study: Study, answer: Estimate) -> str:
    """The answer in one sentence."""
    asked, devices = answer.asked, "one" if answer.asked.devices == 1 else f"{answer.asked.devices:,} x"
    where = f"{study.model.title} on {devices} {study.device.name}"
    if answer.ttft is None or answer.user_rate is None:
        return f"{where}: {answer.problem}."
    users = "1 user" if answer.batch == 1 else f"{int(answer.batch):,} users"
    sees = "sees" if answer.batch == 1 else "see"
    ttft, rate = answer.ttft, answer.user_rate
    each = "" if answer.batch == 1 else " each"
    return (
        f"{where}: {users} with {asked.prompt_tokens:,} tokens in and {asked.new_tokens:,} out {sees} the first token "
        f"after {format_duration_s(ttft.low)} to {format_duration_s(ttft.high)} and {rate.low:.3g} to {rate.high:.3g} "
        f"tokens per second{each}. {answer.limited_by.capitalize()} limits decoding."
    )


def crossings(study: Study, answer: Estimate) -> list[str]:
    """Where the limit changes."""
    steps = Steps(study=study, asked=answer.asked)
    batch, context = compute_bound_batch(steps), cache_over_weights(steps, max(1, int(answer.batch)))
    return [
        f"Arithmetic limits decoding from a batch of {batch:,} on."
        if batch is not None
        else "At no batch does arithmetic limit decoding: every sequence reads a cache of its own.",
        *([f"From a context of {context:,} tokens on a step reads more cache than weights."] if context else []),
    ]


def assumptions(study: Study, answer: Estimate) -> list[str]:
    """What the estimate takes for granted."""
    asked, device = answer.asked, Steps(study=study, asked=answer.asked).device
    family = device.constants
    said = [f"{answer.problem}."] if answer.problem else []
    if family.known:
        said.append(f"Operators reach what was measured on the family {family.family} ({family.source}).")
    else:
        said.append(f"No operator of {study.device.name} was measured: default constants and a wide band.")
    if asked.engine == "transformers":
        said.append("transformers launches each operator from Python; its overhead is recalled, not measured.")
    if not by_server(asked):
        said.append("Requests that fit: 90 % of the memory less 2 GB, the weights and the caches.")
    if asked.engine == "llamacpp" and asked.tp > 1:
        said.append("llama.cpp divides layers among devices: a token passes through them one after the other.")
    if answer.fits and asked.count is not None and answer.batch < asked.count:
        said.append(f"{answer.batch:,} of {asked.count:,} clients fit at once. What the others wait is not in TTFT.")
    if asked.load is not Load.STATIC and answer.batch > 1:
        said.append("TTFT under load depends on how requests arrive and wait: only its band is promised.")
    if answer.fits and answer.batch < FEW and asked.load is Load.MAX:
        said.append(f"Fewer than {FEW} requests fit: a GB of reserve more or less decides the batch.")
    if asked.drafted:
        said.append(_drafting(study, answer))
    if has_experts(study.model):
        said.append("Experts: each token takes its own evenly at random; the bound counts those of one token.")
    return [*said, _accuracy_sentence(study, asked)]


def _drafting(study: Study, answer: Estimate) -> str:
    """What is counted of drafting, and up to which batch it pays."""
    asked, steps = answer.asked, Steps(study=study, asked=answer.asked)
    counted = "the draft model's own time is not counted (--draft NAME)"
    if asked.draft is not None:
        took = f"{format_duration_s(steps.drafting(max(1, int(answer.batch)))[0])} of drafting by {asked.draft.title}"
        counted = f"{took} per step; its weights are in memory, its cache is not counted"
    pays = speculation_pays_to(steps, room_of(study, asked))
    until = "It pays at no batch." if pays is None else f"It pays up to a batch of {pays:,}."
    return f"Speculation: {asked.step_tokens:.3g} tokens per step; {counted}. {until}"


def _accuracy_sentence(study: Study, asked: Asked) -> str:
    known = accuracy_of(study, asked)
    if known is None:
        return "No public run of this kind was compared: take the band for a guess (docs/estimates.md)."
    return (
        f"On {known.rows:,} public measurements of this kind the middle was off by {known.median_error:.0%} in the "
        f"median; a band made from other models and devices held {known.band_covers:.0%} of them (docs/estimates.md)."
    )
