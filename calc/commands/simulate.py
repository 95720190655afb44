"""``simulate``: a load over time: percentiles, goodput, the highest rate that meets the limits."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from calc.commands.estimate_options import served
from calc.commands.options import (
    Parser,
    add_limit_option,
    add_output_options,
    add_study_options,
    count,
    counts,
    policy_among,
    reader,
    size,
)
from calc.commands.output import emit_json, emit_tables
from calc.errors import QuantityError, SpecError
from calc.model.study import Study
from calc.servers.refusals import runs_on
from calc.simulate.capacity import Aim, Found, at_once
from calc.simulate.lengths import fixed, parse_lengths
from calc.simulate.load import Load
from calc.simulate.served import Served, served_by
from calc.simulate.step_times import StepTimes
from calc.simulate.summary import NEEDED, Outcome
from calc.simulate.traces import MOST_REQUESTS, read_trace
from calc.simulate.workload import Arrival, Mix
from calc.speed.asked import Asked
from calc.speed.asked import Load as Kind
from calc.speed.bands import band_for
from calc.speed.room import check_sharing
from calc.speed.spans import Band
from calc.speed.steps import Steps, has_experts
from calc.units import parse_count, parse_duration, parse_rate, parse_share

PROMPT, NEW, REQUESTS = fixed(1024), fixed(256), 1000
PERCENTILE = 99
ROUNDS, MOST_DRAWN = 10, 10_000
"""Default number of requests: ten times as many as fit at once, and at least 1000."""
SHARES = (0.2, 0.5, 0.8, 0.95)
"""Default rates, as fractions of the full load."""
MOST_RATES = 64
FINDS = ("rate", "users")
NOT_SIMULATED = {
    "pp": "a pipeline has several steps in flight, which are not simulated (kvscope estimate --pp counts them)",
    "dp-attention": "attention groups with their own schedulers are not simulated (kvscope estimate counts them)",
    "dcp": "blocks with shared tokens are not simulated (kvscope estimate --dcp counts them)",
    "speculate": "drafting is not simulated (kvscope estimate --speculate counts it)",
    "draft": "drafting is not simulated (kvscope estimate --draft counts it)",
    "chunk": "vLLM splits prompts by the room in a step: use --max-num-batched-tokens",
}
"""Options of ``estimate`` that the simulation does not support, and why."""
DRAWN = ("requests", "prompt_tokens", "new_tokens", "prefix_hit", "prefixes", "seed")
TRACE_ALONE = ("rate", "arrivals", "concurrency", "think", "find", *DRAWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One simulated load: at a rate, with a number of users, or from a trace.

    `fast` and `slow` are the same load with steps at both ends of their band, if it is the only load.
    """

    seen: Outcome
    rate: float | None = None
    users: int | None = None
    fast: Outcome | None = None
    slow: Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """The question and its answer. `load` is None if the server does not start; then `problem` says why."""

    study: Study
    asked: Asked
    served: Served
    args: argparse.Namespace
    requests: Sequence[Arrival]
    band: Band
    mix: Mix | None = None
    load: Load | None = None
    points: tuple[Point, ...] = ()
    found: Found | None = None

    @property
    def problem(self) -> str | None:
        """Why nothing was simulated."""
        return self.served.problem

    @property
    def percentile(self) -> int:
        """The percentile that must meet the limits."""
        return self.args.percentile or PERCENTILE

    @property
    def aim(self) -> Aim | None:
        """Limits and the percentile that must meet them."""
        return None if self.args.limit is None else Aim(limits=self.args.limit, percent=self.percentile)

    def utilization(self, point: Point) -> float | None:
        """The rate as a share of the full load."""
        return None if self.load is None or point.rate is None else point.rate / self.load.full_load


def rates(text: str) -> tuple[float, ...]:
    """``1,2,4``: requests per second. Raises QuantityError."""
    found = tuple(dict.fromkeys(parse_rate(part) for part in text.split(",")))
    if len(found) > MOST_RATES:
        raise QuantityError(f"more than {MOST_RATES} rates: simulate fewer at once")
    return found


def simulate_parser(prog: str) -> Parser:
    """Options of ``simulate``."""
    parser = Parser(prog=prog, description="A load over time, with the scheduler of vLLM's V1 engine.")
    add_study_options(parser)
    load = parser.add_argument_group("load")
    _add_arrival_options(load)
    _add_request_options(load)
    _add_aim_options(load)
    _add_server_options(parser)
    add_output_options(parser)
    return parser


def _add_arrival_options(load: argparse._ArgumentGroup) -> None:
    load.add_argument("--rate", type=reader(rates), metavar="1,2,4", help="requests per second, one row per rate")
    load.add_argument("--arrivals", choices=("poisson", "constant"), help="default poisson")
    load.add_argument(
        "--concurrency", type=counts, metavar="1..64", help="users; each sends its next request when the last one ends"
    )
    load.add_argument(
        "--think", type=reader(parse_duration), metavar="5s", help="pause of a user before the next request"
    )
    load.add_argument("--trace", type=Path, metavar="FILE", help="CSV or JSON lines with arrivals and lengths")


def _add_request_options(load: argparse._ArgumentGroup) -> None:
    load.add_argument(
        "--requests",
        type=reader(partial(parse_count, maximum=MOST_REQUESTS)),
        metavar="N",
        help="number of requests (default: 1000 or more)",
    )
    load.add_argument(
        "--prompt-tokens", type=reader(parse_lengths), metavar="P",
        help="prompt tokens (default 1024): 1024, 512..2048, exponential:300, normal:1000,200, lognormal:800,0.7",
    )  # fmt: skip
    load.add_argument(
        "--new-tokens",
        type=reader(parse_lengths),
        metavar="G",
        help="generated tokens, in the same forms (default 256)",
    )
    load.add_argument(
        "--prefix-hit", type=reader(parse_share), metavar="F", help="share of each prompt that is a shared prefix"
    )
    load.add_argument("--prefixes", type=count, metavar="N", help="number of different shared prefixes (default 1)")
    load.add_argument("--seed", type=reader(partial(parse_count, minimum=0, maximum=2**63)), help="default 0")


def _add_aim_options(load: argparse._ArgumentGroup) -> None:
    add_limit_option(load)
    load.add_argument(
        "--percentile",
        type=int,
        choices=sorted(NEEDED),
        help="percentile that must meet the limits (default 99)",
    )
    load.add_argument("--find", choices=FINDS, help="find the highest rate, or the most users, within --limit")


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument("--tp", type=count, default=1, metavar="X", help="tensor-parallel degree (default 1)")
    server.add_argument(
        "--ep", type=count, default=1, metavar="N", help="expert-parallel degree, within the TP devices"
    )
    for name, why in NOT_SIMULATED.items():
        server.add_argument(f"--{name}", type=_refused(why), help=argparse.SUPPRESS)
    server.add_argument(
        "--policy",
        type=policy_among(("vllm",), "has no scheduler here"),
        default="vllm",
        metavar="vllm",
        help="the simulated scheduler",
    )
    server.add_argument("--engine-version", metavar="V", help="such as 0.19.0")
    server.add_argument("--gpu-memory-utilization", type=reader(parse_share), metavar="0.9")
    server.add_argument("--max-num-batched-tokens", type=count, metavar="N", help="maximum tokens per step")
    server.add_argument("--max-num-seqs", type=count, metavar="N", help="maximum sequences per step")
    server.add_argument("--block-size", type=count, metavar="N", help="tokens per cache block")
    server.add_argument("--kv-pool", type=size, metavar="SIZE", help="cache pool per GPU, instead of the computed one")
    server.add_argument("--enforce-eager", action="store_true", help="disable CUDA graphs")
    server.add_argument("--no-prefix-caching", action="store_true", help="do not reuse cached prefixes")


def _refused(why: str) -> Callable[[str], str]:
    """A reader that accepts only one of them."""

    def read(text: str) -> str:
        if text != "1":
            raise argparse.ArgumentTypeError(why)
        return text

    return read


def run_simulate(argv: Sequence[str], prog: str) -> int:
    """``simulate``. The exit code is 0 even if the server does not start or nothing meets the limits."""
    args = simulate_parser(prog).parse_args(argv)
    return printed(simulated(args), args)


def printed(answer: Simulated, args: argparse.Namespace) -> int:
    """The answer in the requested format."""
    if args.format == "json":
        from calc.commands.simulate_document import document

        return emit_json(args, document(answer))
    from calc.commands.simulate_tables import answer_of

    return emit_tables(args, *answer_of(answer))


def simulated(args: argparse.Namespace) -> Simulated:
    """Everything that the options ask. Raises CalcError."""
    answer = prepared(args)
    if answer.load is None:
        return answer
    if args.find is not None:
        return _searched(answer, answer.load, args)
    return replace(answer, points=_points(answer.load, args, answer.band))


def prepared(args: argparse.Namespace) -> Simulated:
    """The server and the requests, before any request is sent. Raises CalcError."""
    _check(args)
    if args.trace is not None:
        answer = _asked(args, read_trace(args.trace))
    else:
        mix = _mix(args)
        answer = replace(_asked(args, mix.drawn(args.requests or REQUESTS, args.seed or 0)), mix=mix)
        if args.requests is None and (n := _enough(answer)) > REQUESTS:
            answer = replace(_asked(args, mix.drawn(n, args.seed or 0)), mix=mix)
    return answer if answer.served.server is None else _with_load(answer, args)


def _asked(args: argparse.Namespace, requests: Sequence[Arrival]) -> Simulated:
    """The server, sized for the longest of `requests`."""
    longest = max(requests, key=lambda one: one.longest)
    asked = Asked(
        version=args.engine_version,
        prompt_tokens=longest.prompt_tokens,
        new_tokens=longest.new_tokens,
        tp=args.tp,
        ep=args.ep,
    )
    study, asked = served(args, asked)
    return Simulated(
        study=study,
        asked=asked,
        served=_server(study, asked, args, longest.longest),
        args=args,
        requests=requests,
        band=_band(study, asked),
    )


def _enough(answer: Simulated) -> int:
    """Enough requests to show more than how an empty server fills up."""
    server = answer.served.server
    return 0 if server is None else min(MOST_DRAWN, ROUNDS * at_once(answer.requests, server))


def _check(args: argparse.Namespace) -> None:
    """Raise SpecError for options that do not make sense together."""
    if args.trace is not None:
        for name in TRACE_ALONE:
            if getattr(args, name) is not None:
                raise SpecError(
                    name,
                    f"--{name.replace('_', '-')} cannot be combined with --trace, which sets it: give only one of them",
                )
    if args.find is not None:
        if args.limit is None:
            raise SpecError("limit", f"--find {args.find} needs --limit: add the latency limits")
        for name in ("rate", "concurrency"):
            if getattr(args, name) is not None:
                raise SpecError(name, f"--find {args.find} searches for the load: leave out --{name}")
        percent = args.percentile or PERCENTILE
        if (args.requests or REQUESTS) < NEEDED[percent]:
            raise SpecError("requests", f"percentile {percent} needs at least {NEEDED[percent]} requests")
    if args.rate is not None and args.concurrency is not None:
        raise SpecError("rate", "--rate is an open loop and --concurrency a closed loop: give only one of them")
    closed = args.concurrency is not None or args.find == "users"
    if args.arrivals is not None and closed:
        raise SpecError(
            "arrivals", "--arrivals needs an open loop: in a closed loop, users send when their last request has ended"
        )
    if args.percentile is not None and args.limit is None:
        raise SpecError("percentile", "--percentile needs --limit: add the latency limits")
    if args.think is not None and not closed:
        raise SpecError("think", "--think needs users: add --concurrency or --find users")
    if args.prefixes is not None and args.prefix_hit is None:
        raise SpecError("prefixes", "--prefixes needs --prefix-hit: add the shared part of a prompt")
    if args.prefix_hit is not None and args.no_prefix_caching:
        raise SpecError("prefix_hit", "--prefix-hit has no effect with --no-prefix-caching: give only one of them")


def _mix(args: argparse.Namespace) -> Mix:
    return Mix(
        prompt=args.prompt_tokens or PROMPT,
        new=args.new_tokens or NEW,
        shared=float(args.prefix_hit or 0),
        prefixes=args.prefixes or 1,
    )


def _server(study: Study, asked: Asked, args: argparse.Namespace, longest: int) -> Served:
    from calc.servers.records import ModelFacts, ServerOptions

    Steps(study=study, asked=asked).device  # noqa: B018  a device without bandwidth or peak is refused first
    check_sharing(study.model, asked)
    options = ServerOptions(
        engine="vllm",
        version=args.engine_version,
        tp=args.tp,
        gpu_memory_utilization=args.gpu_memory_utilization,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_seqs=args.max_num_seqs,
        block_size=args.block_size,
        kv_pool_bytes=args.kv_pool,
        enforce_eager=args.enforce_eager,
        facts=asked.facts or ModelFacts(),
    )
    found = served_by(study, options, longest=longest, caching=not args.no_prefix_caching)
    if not runs_on("vllm", study.device):
        return replace(found, server=None, problem=f"vllm does not run on {study.device.name}")
    if args.prefix_hit is not None and found.server is not None and not found.server.caching:
        raise SpecError(
            "prefix_hit",
            f"{study.model.title} has layers with several kinds of cache, for which prefixes are not simulated: "
            "leave out --prefix-hit",
        )
    return found


def _band(study: Study, asked: Asked) -> Band:
    """Of a step in a closed loop."""
    steps = Steps(study=study, asked=replace(asked, load=Kind.CLOSED))
    return band_for(steps, "tpot", experts=has_experts(study.model))


def _with_load(answer: Simulated, args: argparse.Namespace) -> Simulated:
    assert answer.served.server is not None
    load = Load(
        server=answer.served.server,
        times=StepTimes(Steps(study=answer.study, asked=answer.asked)),
        requests=answer.requests,
        seed=args.seed or 0,
        even=args.arrivals == "constant",
        think_s=args.think or 0.0,
        limits=args.limit,
    )
    return replace(answer, load=load)


def _searched(answer: Simulated, load: Load, args: argparse.Namespace) -> Simulated:
    assert answer.aim is not None
    found = load.highest_rate(answer.aim) if args.find == "rate" else load.most_users(answer.aim)
    shown = [(found.value, found.outcome), (found.above, found.above_outcome)]
    points = [_point(value, seen, args.find) for value, seen in shown if value is not None and seen is not None]
    return replace(answer, found=found, points=tuple(points))


def _point(value: float, seen: Outcome, find: str) -> Point:
    return Point(seen=seen, rate=value) if find == "rate" else Point(seen=seen, users=int(value))


def _points(load: Load, args: argparse.Namespace, band: Band) -> tuple[Point, ...]:
    if args.trace is not None:
        fast, slow = (load.slowed(factor).as_listed() for factor in (band.low, band.high))
        return (Point(seen=load.as_listed(), rate=_mean_rate(load.requests), fast=fast, slow=slow),)
    if args.concurrency is not None:
        users: Sequence[int] = args.concurrency
        if len(users) > 1:
            return tuple(Point(seen=load.with_users(n), users=n) for n in users)
        fast, slow = (load.slowed(factor).with_users(users[0]) for factor in (band.low, band.high))
        return (Point(seen=load.with_users(users[0]), users=users[0], fast=fast, slow=slow),)
    if args.rate is None or len(args.rate) > 1:
        asked = args.rate or [load.full_load * share for share in SHARES]
        return tuple(Point(seen=load.at_rate(rate), rate=rate) for rate in asked)
    fast, slow = (load.slowed(factor).at_rate(args.rate[0]) for factor in (band.low, band.high))
    return (Point(seen=load.at_rate(args.rate[0]), rate=args.rate[0], fast=fast, slow=slow),)


def _mean_rate(requests: Sequence[Arrival]) -> float | None:
    """Requests per second of a trace, between its first and its last arrival."""
    last_s = requests[-1].at_s
    return (len(requests) - 1) / last_s if last_s else None
