"""``memory``: parameters, weights, KV cache, largest batch, tensor parallelism."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.documents import Document, json_number, term_document
from calc.commands.headline import Headline, asked_document, asked_steps, headline, one_device, sentences, with_headline
from calc.commands.llamacpp import add_llamacpp_options
from calc.commands.options import (
    SERVERS,
    Parser,
    add_parallel_options,
    add_server_options,
    check_server_options,
    count,
    study_from,
    study_parser,
)
from calc.commands.output import emit_json, emit_tables
from calc.errors import CacheUnknown
from calc.model.spec import DIMENSIONS

if TYPE_CHECKING:
    from calc.commands.output import Answer
    from calc.fit.memory import MemoryReport, TpRow


def memory_parser(prog: str) -> Parser:
    """Options of ``memory``."""
    parser = study_parser(prog, "Parameters, weights, KV cache, largest batch, tensor parallelism.")
    parser.add_argument(
        "--batch", type=count, metavar="N", help="check whether that many requests fit, and what is left"
    )
    add_parallel_options(parser)
    add_server_options(parser)
    add_llamacpp_options(parser)
    return parser


def run_memory(argv: Sequence[str], prog: str) -> int:
    """``memory``. The exit code is 0 even if nothing fits (that is an answer)."""
    from calc.fit.memory import memory_report

    args = memory_parser(prog).parse_args(argv)
    check_server_options(args)
    try:
        report = memory_report(study_from(args, servers=True))
    except CacheUnknown as known:
        from calc.commands.weights_alone import emit_weights

        return emit_weights(args, known)
    if args.policy in SERVERS:
        return _emit_server(args, report)
    if any((args.pp, args.pp_layers, args.ep, args.dp_attention, args.dcp)):
        return _emit_with_plans(args, report)
    answer = headline(report)
    if args.format == "json":
        return emit_json(args, memory_document(report, answer) | asked_document(args, answer))
    return emit_tables(args, *_asked(args, report, answer))


def _asked(args: argparse.Namespace, report: MemoryReport, answer: Headline) -> Answer:
    """The answer of ``memory``, with the requested part first."""
    heading, parts, notes = memory_answer(report, answer)
    said = sentences(answer, args.batch)
    return heading, [with_headline(parts[0], answer, args.batch), *parts[1:]], list(dict.fromkeys((*said, *notes)))


def _emit_server(args: argparse.Namespace, report: MemoryReport) -> int:
    from calc.commands.server import serve, server_answer, server_document

    served = serve(args, report)
    if args.format == "json":
        return emit_json(args, memory_document(served.base) | server_document(served, args.batch))
    return emit_tables(args, *server_answer(served, args.batch))


def _emit_with_plans(args: argparse.Namespace, report: MemoryReport) -> int:
    from calc.commands.parallel import parallel_document, parallel_notes, parallel_tables, plans_from

    plans = plans_from(args, report.study)
    answer = headline(report, plans)
    if args.format == "json":
        asked = asked_document(args, answer)
        return emit_json(args, {**memory_document(report), **asked, "parallel": parallel_document(plans)})
    heading, tables, notes = _asked(args, report, answer)
    tables = [*tables[:-1], *parallel_tables(plans), tables[-1]]
    return emit_tables(args, heading, tables, [*notes, *parallel_notes(plans)])


def memory_answer(report: MemoryReport, answer: Headline | None = None) -> Answer:
    """Heading, tables and sentences of ``memory``; with `answer` if it is not for one device."""
    from calc.commands import tables
    from calc.commands.notes import memory_notes, reading_notes

    answer = answer or one_device(report)
    readings = reading_notes(report) if answer.devices == 1 else []
    parts = [
        tables.answer_table(report),
        tables.component_table(report),
        tables.tp_table(report),
        tables.derivation_table(asked_steps(report, answer)),
    ]
    heading = f"{report.study.model.title} on {report.study.device.name}, {report.study.context:,} tokens"
    return heading, parts, (*memory_notes(report, devices=answer.devices), *readings)


def memory_document(report: MemoryReport, answer: Headline | None = None) -> Document:
    """What ``memory --json`` prints; with `answer` if it is not for one device."""
    from calc.commands.notes import memory_notes

    answer = answer or one_device(report)
    model = report.study.model
    return {
        "command": "memory",
        "schema": 1,
        "model": {
            "name": model.title,
            **{name: getattr(model, name) for name in DIMENSIONS},
            "source": model.provenance,
        },
        "parameters": {
            "total": report.parameters.total,
            "active_per_token": report.parameters.active,
            "components": report.parameters.components,
            "encoders": _encoders_document(model.encoder_params),
        },
        "context": report.study.context,
        "weight_bytes": report.weight_bytes,
        "weight_bytes_by_component": {name: json_number(n) for name, n in report.component_bytes.items()},
        "kv_bytes_per_token": json_number(report.kv_bytes_per_token),
        "kv_bytes_per_request": report.kv_bytes_per_request,
        "state_bytes_per_sequence": report.state_bytes_per_sequence,
        "device": report.study.device.name,
        "device_memory_bytes": report.study.device.memory_bytes,
        "fits": report.fits,
        "max_batch": report.max_batch,
        "policy": str(report.study.policy),
        "tp": [_tp_document(row) for row in report.tp],
        "tp_by_policy": {str(p): [_tp_document(row) for row in rows] for p, rows in report.tp_tables.items()},
        "steps": [term_document(term) for term in asked_steps(report, answer)],
        "notes": list(memory_notes(report, devices=answer.devices)),
    }


def _encoders_document(params: int) -> Document | None:
    """Encoders and projectors beside the text model, in 16 bits as servers load them; None if none are counted."""
    return {"parameters": params, "bytes": 2 * params} if params else None


def _tp_document(row: TpRow) -> Document:
    return {
        "tp": row.tp,
        "weight_bytes_per_gpu": row.weight_bytes_per_gpu,
        "kv_bytes_per_request_per_gpu": json_number(row.kv_bytes_per_request_per_gpu),
        "max_batch": row.max_batch,
        "fits": row.fits,
        "problem": row.problem,
    }
