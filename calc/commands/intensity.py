"""``intensity``: FLOPs, bytes and arithmetic intensity of attention and of a decode step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from calc.commands import tables
from calc.commands.documents import Document, json_number
from calc.commands.options import (
    Parser,
    add_output_options,
    add_study_options,
    count,
    counts,
    device_from,
    formats_from,
    model_from,
    storage,
)
from calc.commands.output import emit_json, emit_tables
from calc.explain.terms import to_text
from calc.intensity.attention import Attention, PhaseCost
from calc.intensity.observations import intensity_observations
from calc.intensity.study import (
    DEFAULT_BATCHES,
    DEFAULT_CONTEXTS,
    IntensityQuery,
    IntensityReport,
    intensity_report,
)
from calc.intensity.traffic import DecodePoint

if TYPE_CHECKING:
    from calc.commands.output import Answer


def intensity_parser(prog: str) -> Parser:
    """Options of ``intensity``."""
    parser = Parser(prog=prog, description="FLOPs, bytes and arithmetic intensity of attention and of a decode step.")
    add_study_options(parser)
    parser.add_argument("--context", type=count, default=1024, metavar="N", help="tokens (default 1024)")
    parser.add_argument(
        "--element-bytes", type=storage, metavar="X", help="bytes per element of activations and cache (default 2)"
    )
    add_attention_options(parser)
    parser.add_argument("--group-size", type=count, default=1, metavar="G", help="query heads per KV head (default 1)")
    parser.add_argument(
        "--contexts", type=counts, default=DEFAULT_CONTEXTS, metavar="64..16384", help="contexts of the prefill table"
    )
    parser.add_argument(
        "--batches", type=counts, default=DEFAULT_BATCHES, metavar="1..256", help="batches of the decode table"
    )
    add_output_options(parser)
    return parser


def add_attention_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Which attention is counted, and what its softmax costs."""
    parser.add_argument("--attention", choices=[str(a) for a in Attention], default="standard", help="default standard")
    parser.add_argument(
        "--softmax-flops", type=int, choices=(5, 0), default=5, help="FLOPs per element of the softmax (default 5)"
    )


def query_from(args: argparse.Namespace) -> IntensityQuery:
    """The question that the options ask. Raises CalcError."""
    model = model_from(args)
    formats = formats_from(args, model)
    element = args.element_bytes or formats.get("kv_format")
    weight = formats.get("weight_format")
    return IntensityQuery(
        model=model,
        device=device_from(args),
        attention=Attention(args.attention),
        context=args.context,
        head_dim=model.head_dim,
        group_size=args.group_size,
        element_bytes=element.bytes_per_element if element else 2,
        weight_element_bytes=weight.bytes_per_element if weight else 2,
        softmax_flops=args.softmax_flops,
        contexts=args.contexts,
        batches=args.batches,
    )


def run_intensity(argv: Sequence[str], prog: str) -> int:
    """``intensity``."""
    args = intensity_parser(prog).parse_args(argv)
    report = intensity_report(query_from(args))
    if args.format == "json":
        return emit_json(args, intensity_document(report))
    return emit_tables(args, *intensity_answer(report))


def intensity_answer(report: IntensityReport) -> Answer:
    """Heading, tables and sentences of ``intensity``."""
    query = report.query
    shown = f"{query.attention} attention, one KV head, N = {query.context:,}, d = {query.head_dim}"
    parts = [
        tables.step_table(report.prefill, f"Prefill, {shown}"),
        tables.step_table(report.decode, f"Decode, {shown}"),
        tables.formula_table(report),
        tables.context_table(report),
        tables.batch_table(report),
    ]
    return "Arithmetic intensity", parts, intensity_observations(report)


def intensity_document(report: IntensityReport) -> Document:
    """What ``intensity --json`` prints. Phases are of one KV head; `limit` is null where there is none.

    `bytes` is whole (rounded up); `intensity` is worked out before that.
    """
    query = report.query
    return {
        "command": "intensity",
        "schema": 1,
        "attention": str(query.attention),
        "element_bytes": json_number(query.element_bytes),
        "context": query.context,
        "head_dim": query.head_dim,
        "group_size": query.group_size,
        "softmax_flops": query.softmax_flops,
        "model": query.model.title,
        "device": query.device.name,
        "ridge": query.device.ridge(),
        "prefill": _phase_document(report.prefill),
        "decode": _phase_document(report.decode),
        "prefill_by_context": [
            {"context": p.context, "flops": p.flops, "bytes": ceil(p.bytes), "intensity": p.intensity}
            for p in report.prefill_by_context
        ],
        "decode_by_batch": _batch_documents(report.decode_by_batch),
        "decode_by_batch_model_groups": _batch_documents(report.decode_by_batch_grouped),
        "observations": list(intensity_observations(report)),
    }


def _phase_document(cost: PhaseCost) -> Document:
    return {
        "flops": cost.flops,
        "bytes": ceil(cost.bytes),
        "intensity": cost.intensity,
        "formula_flops": to_text(cost.flops_formula),
        "formula_bytes": to_text(cost.bytes_formula),
        "formula_intensity": to_text(cost.intensity_formula),
        "limit": cost.limit,
        "formula_limit": to_text(cost.limit_formula) if cost.limit_formula else None,
        "steps": [
            {
                "name": step.name,
                "flops": step.flops,
                "read_bytes": json_number(step.read_bytes),
                "write_bytes": json_number(step.write_bytes),
            }
            for step in cost.steps
        ],
    }


def _batch_documents(points: tuple[DecodePoint, ...]) -> list[Document]:
    return [
        {
            "batch": p.batch,
            "attention_intensity": p.attention_intensity,
            "linear_intensity": p.linear_intensity,
            "step_intensity": p.step_intensity,
        }
        for p in points
    ]
