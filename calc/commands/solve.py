"""``solve``: inverse questions, what fits where."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from calc.commands.documents import Document
from calc.commands.llamacpp import SPLIT, add_llamacpp_options, device_words, every_advice, split_document
from calc.commands.notes import context_notes
from calc.commands.options import (
    DEFAULT_CONTEXT,
    SERVERS,
    UNCOUNTED,
    Parser,
    add_limit_options,
    add_output_options,
    add_policy_option,
    add_server_options,
    add_study_options,
    check_server_options,
    count,
    study_from,
)
from calc.commands.output import emit_json, emit_tables
from calc.commands.solve_tables import TABLES
from calc.errors import SpecError
from calc.fit.rules import costs_of
from calc.fit.solve import (
    Advice,
    devices_that_fit,
    fewest_devices,
    formats_that_fit,
    largest_batch,
    largest_context,
)
from calc.model.shares import tp_problem
from calc.model.study import Policy, Study
from calc.servers.names import SERVER_NAMES
from calc.units import requests

if TYPE_CHECKING:
    from calc.fit.admission import Costs
    from calc.servers.records import ServerOptions, ServerReport


FINDS = ("context", "batch", "devices", "device", "format")
WITH_LIMITS = "tp"
"""A question about time only: the best tensor parallelism within --limit."""


def solve_parser(prog: str) -> Parser:
    """Options of ``solve``."""
    parser = Parser(
        prog=prog,
        description="Inverse questions: the largest context or batch, the fewest devices, which catalog devices, which "
        "formats. If nothing fits, the answer says what is missing and what to change. With a server policy, the "
        "answer is what that server would admit.",
    )
    add_study_options(parser)
    parser.add_argument(
        "--find",
        choices=(*FINDS, WITH_LIMITS, SPLIT, "all"),
        default="all",
        help="the question to answer (default all)",
    )
    parser.add_argument(
        "--context", type=count, default=DEFAULT_CONTEXT, metavar="N", help="tokens per request (default 8192)"
    )
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="requests that must fit (default 1)")
    parser.add_argument("--tp", type=count, default=1, metavar="N", help="devices that share the model (default 1)")
    parser.add_argument(
        "--most", type=count, default=1024, metavar="N", help="largest number of devices to try (default 1024)"
    )
    add_limit_options(parser)
    add_policy_option(parser, servers=True, timed=True)
    add_server_options(parser)
    add_llamacpp_options(parser)
    parser.set_defaults(pp=None, pp_layers=None, ep=None, dcp=None, dp_attention=None)
    add_output_options(parser)
    return parser


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The question and its study; `server` if a server policy answers it."""

    study: Study
    policy: str
    batch: int
    tp: int
    most: int
    server: ServerOptions | None
    costs: Costs

    @property
    def report(self) -> ServerReport | None:
        """The server's report on the study; None without a server, or if it cannot divide the model this way."""
        if self.server is None:
            return None
        from calc.servers.report import server_report

        try:
            return server_report(self.study, replace(self.server, tp=self.tp))
        except SpecError:
            return None


def question_from(args: argparse.Namespace) -> Question:
    """The question that the options ask. Raises CalcError."""
    check_server_options(args)
    args.tp = (args.tp,)
    study, server = study_from(args, servers=True), None
    if args.policy in SERVERS:
        from calc.commands.server import options_from
        from calc.servers.serving import as_served

        server = options_from(args, study)
        given = {"weights_given": args.weight_format is not None, "cache_given": args.kv_format is not None}
        study = as_served(study, server, **given)
    tp = study.tps[0]  # for different devices, their number
    return Question(
        study=study,
        policy=args.policy,
        batch=args.batch,
        tp=tp,
        most=args.most,
        server=server,
        costs=costs_of(study, tp, server),
    )


def run_solve(argv: Sequence[str], prog: str) -> int:
    """``solve``. The exit code is 0 even if nothing fits (that is an answer)."""
    args = solve_parser(prog).parse_args(argv)
    if args.limit is not None:
        from calc.commands.solve_limits import run_with_limits

        return run_with_limits(args)
    _check_no_limit(args)
    if args.policy not in (*map(str, Policy), *SERVERS):
        raise SpecError("policy", f"{args.policy} {UNCOUNTED}: use --limit to ask for its times")
    asked = question_from(args)
    finds = _finds(args)
    document = solve_document(asked, finds)
    if args.format == "json":
        return emit_json(args, document)
    study = asked.study
    devices = device_words(study, asked.server)
    heading = f"{study.model.title} on {devices}, {requests(asked.batch)}, {study.context:,} tokens"
    heading += f", TP {asked.tp}, as {SERVER_NAMES.get(asked.policy, asked.policy)} counts"
    tables = [TABLES[find](document["answers"][find], document) for find in finds]
    return emit_tables(args, heading, tables, [*_advice_sentences(document), *document["notes"]])


def _check_no_limit(args: argparse.Namespace) -> None:
    """Raise SpecError for a question about time without a limit."""
    given = [name for name in ("rate", "prompt_tokens", "new_tokens") if getattr(args, name) is not None]
    if args.find == WITH_LIMITS or given:
        what = f"--{given[0].replace('_', '-')}" if given else "--find tp"
        raise SpecError("limit", f"{what} needs latency limits: add --limit ttft=500ms,tpot=50ms")


def _finds(args: argparse.Namespace) -> tuple[str, ...]:
    splits = args.policy == "llamacpp"
    if args.find == SPLIT and not splits:
        raise SpecError("find", "--find split needs llama.cpp, which can run layers on the host: add --policy llamacpp")
    if args.find != "all":
        return (args.find,)
    return (*FINDS, SPLIT) if splits else FINDS


def _advice_sentences(document: Document) -> list[str]:
    head = [document["shortage"]] if document["shortage"] else []
    return [*head, *(f"{step['text']} ({' '.join(step['options'])})" for step in document["advice"])]


def solve_document(asked: Question, finds: Sequence[str]) -> Document:
    """What ``solve --json`` prints: the question, the answer to each of `finds`, what is missing, what to change."""
    study = asked.study
    return {
        "command": "solve",
        "schema": 1,
        "model": study.model.title,
        "device": device_words(study, asked.server),
        "device_memory_bytes": study.device.memory_bytes,
        "context": study.context,
        "batch": asked.batch,
        "tp": asked.tp,
        "policy": asked.policy,
        "weight_format": study.weight_format.name,
        "kv_format": study.kv_format.name,
        **_verdict(asked),
        "answers": {find: ANSWERS[find](asked) for find in finds},
        "notes": _solve_notes(asked),
    }


def _verdict(asked: Question) -> Document:
    """Whether it fits, what is missing and what to change."""
    costs, batch = asked.costs, asked.batch
    at, steps, refused = costs.admission(batch=batch), every_advice(costs, batch), _refused_context(asked)
    if refused:
        limit = asked.study.model.max_context
        steps = (
            Advice(
                change="context", text=f"Shorten the context to {limit:,} tokens.", options=("--context", str(limit))
            ),
            *(step for step in steps if step.change != "context"),
        )
    return {
        "fits": at.batch >= batch and not refused,
        "missing_bytes": at.missing_bytes,
        "shortage": " ".join(filter(None, (refused, costs.shortage(batch)))),
        "advice": [_record(step) for step in steps],
    }


def _refused_context(asked: Question) -> str:
    """The sentence that the server does not start with this context; "" if it does."""
    if asked.server is None or asked.report is None:
        return ""
    from calc.servers.refusals import context_refusal

    refused = context_refusal(asked.report)
    return f"{SERVER_NAMES[asked.policy]} does not start: {refused}." if refused else ""


def _solve_notes(asked: Question) -> list[str]:
    study, report = asked.study, asked.report
    notes = [f"Device memory: {study.device.reading}.", *filter(None, [study.weight_format.note])]
    if asked.server is not None:
        assumed = () if report is None else report.assumptions
        left_out = f"Devices that {SERVER_NAMES[asked.policy]} does not support are left out."
        return [*notes, left_out, *([f"Assumed: {'; '.join(assumed)}."] if assumed else [])]
    if problem := tp_problem(study.model, asked.tp):
        notes.append(f"TP {asked.tp} cannot be served: {problem}.")
    notes += context_notes(study)
    counted = f"{asked.policy}: weights and cache are counted; activations, runtime and graphs are not"
    return [*notes, f"{counted} (--policy vllm counts what a server takes)."]


def _record(answer: Any) -> Document:
    """A frozen record as a JSON object."""
    values = {f.name: getattr(answer, f.name) for f in fields(answer)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _find_context(q: Question) -> Document:
    return _record(largest_context(q.costs, batch=q.batch))


def _find_batch(q: Question) -> Document:
    return _record(largest_batch(q.costs))


def _find_devices(q: Question) -> Document:
    answer = fewest_devices(q.costs, batch=q.batch, most=q.most)
    return {**_record(answer), "plans": [_record(plan) for plan in answer.plans]}


def _find_device(q: Question) -> list[Document]:
    return [_record(answer) for answer in devices_that_fit(q.costs, batch=q.batch)]


def _find_format(q: Question) -> list[Document]:
    return [_record(answer) for answer in formats_that_fit(q.costs, batch=q.batch)]


def _find_split(q: Question) -> Document:
    assert q.server is not None
    return split_document(q.study, replace(q.server, tp=q.tp), q.batch)


ANSWERS: dict[str, Callable[[Question], Any]] = {
    "context": _find_context,
    "batch": _find_batch,
    "devices": _find_devices,
    "device": _find_device,
    "format": _find_format,
    SPLIT: _find_split,
}
