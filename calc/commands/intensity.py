"""``intensity``: FLOPs, bytes and arithmetic intensity of attention and of a decode step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from calc.commands import intensity_tables as tables
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
    reader,
    storage,
)
from calc.commands.output import emit_json, emit_tables
from calc.errors import SpecError
from calc.explain.terms import Number, to_text
from calc.intensity.attention import Attention, PhaseCost, StepCost
from calc.intensity.layers import LayersCost, is_plain
from calc.intensity.observations import intensity_observations
from calc.intensity.study import (
    DEFAULT_BATCHES,
    DEFAULT_CONTEXTS,
    MAX_SOFTMAX_FLOPS,
    IntensityQuery,
    IntensityReport,
    default_attention,
    intensity_report,
)
from calc.intensity.traffic import DecodePoint, commonest_experts, expected_experts
from calc.model.storage import FORMATS
from calc.model.stored import is_as_stored
from calc.step.operators import Operator
from calc.units import whole

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
    parser.add_argument(
        "--group-size", type=count, metavar="G", help="query heads per KV head, for plain attention (default 1)"
    )
    parser.add_argument(
        "--contexts",
        type=counts,
        default=DEFAULT_CONTEXTS,
        metavar="64..16384",
        help="context lengths of the prefill table",
    )
    parser.add_argument(
        "--batches", type=counts, default=DEFAULT_BATCHES, metavar="1..256", help="batch sizes of the decode table"
    )
    add_output_options(parser)
    return parser


def add_attention_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The attention algorithm, the cost of its softmax, and whether a causal mask is used."""
    parser.add_argument(
        "--attention",
        choices=[str(a) for a in Attention],
        help="default standard, or flash if not all layers of the model have plain attention",
    )
    parser.add_argument(
        "--softmax-flops", type=softmax, default=5, metavar="5|0|N", help="softmax FLOPs per element (default 5)"
    )
    parser.add_argument(
        "--causal", action="store_true", help="count only the lower triangle of the scores (default: all)"
    )


def _softmax(text: str) -> Number:
    """FLOPs per element: a number of at least 0. Raises SpecError."""
    try:
        value = Fraction(text.strip().replace("_", "")) if len(text) <= 12 and "e" not in text.lower() else None
    except (ValueError, ZeroDivisionError):
        value = None
    if value is None or not 0 <= value <= MAX_SOFTMAX_FLOPS:
        raise SpecError("softmax_flops", f"FLOPs per element must be a number from 0 to a million, not {text[:40]!r}")
    return whole(value)


softmax = reader(_softmax)


def query_from(args: argparse.Namespace) -> IntensityQuery:
    """The question that the options ask. Raises CalcError."""
    model = model_from(args)
    formats = formats_from(args, model)
    element = args.element_bytes or formats.get("kv_format")
    weight = formats.get("weight_format", FORMATS["bf16"])
    if args.group_size is not None and not is_plain(model):
        raise SpecError(
            "group_size",
            f"--group-size only applies if all layers have plain attention: the layers of {model.title} are counted "
            "with their own heads",
        )
    return IntensityQuery(
        model=model,
        device=device_from(args),
        attention=Attention(args.attention) if args.attention else default_attention(model),
        context=args.context,
        head_dim=model.head_dim,
        group_size=args.group_size or 1,
        element_bytes=element.bytes_per_element if element else 2,
        weight_element_bytes=weight.bytes_per_element,
        stored=is_as_stored(model, weight),
        softmax_flops=args.softmax_flops,
        causal=args.causal,
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
    if report.layers is not None:
        kept = "S and P in memory" if query.attention is Attention.STANDARD else "S and P on chip"
        shown = f"the layers of {query.model.title}, one sequence, N = {query.context:,}, {kept}"
    else:
        shown = f"{query.attention} attention, one KV head, N = {query.context:,}, d = {query.head_dim}"
    shown += ", causal" if query.causal else ""
    parts = [*tables.phase_tables(report, f"Prefill, {shown}", f"Decode, {shown}"), *tables.sweep_tables(report)]
    return "Arithmetic intensity", parts, intensity_observations(report)


def intensity_document(report: IntensityReport) -> Document:
    """What ``intensity --json`` prints. `limit` is null if there is none.

    `counted` says what the phases count: one KV head, or all layers of a model that is not plain, for one sequence.
    `flops` and `bytes` are rounded up to integers; `intensity` is computed before rounding. `ridges` are those of
    common devices if the device has none of its own.
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
        "softmax_flops": json_number(query.softmax_flops),
        "causal": query.causal,
        "counted": "one KV head" if report.layers is None else "all layers",
        "model": query.model.title,
        "device": query.device.name,
        "ridge": query.device.ridge(),
        "ridges": [{"device": r.name, "value": r.value, "common": r.common} for r in report.ridges],
        "prefill": _phase_document(report.shown_prefill),
        "decode": _phase_document(report.shown_decode),
        "prefill_by_context": [
            {"context": p.context, "flops": ceil(p.flops), "bytes": ceil(p.bytes), "intensity": p.intensity}
            for p in report.prefill_by_context
        ],
        "decode_by_batch": _batch_documents(report, report.decode_by_batch),
        "decode_by_batch_model_groups": _batch_documents(report, report.decode_by_batch_grouped),
        "observations": list(intensity_observations(report)),
    }


def _phase_document(cost: PhaseCost | LayersCost) -> Document:
    return {
        "flops": ceil(cost.flops),
        "bytes": ceil(cost.bytes),
        "intensity": cost.intensity,
        "formula_flops": to_text(cost.flops_formula),
        "formula_bytes": to_text(cost.bytes_formula),
        "formula_intensity": to_text(cost.intensity_formula),
        "limit": cost.limit,
        "formula_limit": to_text(cost.limit_formula) if cost.limit_formula else None,
        "steps": [_step_document(step) for step in (cost.steps if isinstance(cost, PhaseCost) else cost.operators)],
    }


def _step_document(step: StepCost | Operator) -> Document:
    document = {
        "name": step.name,
        "flops": json_number(step.flops),
        "read_bytes": json_number(step.read_bytes),
        "write_bytes": json_number(step.write_bytes),
    }
    return document if isinstance(step, StepCost) else {"layers": step.count, **document}


def _batch_documents(report: IntensityReport, points: tuple[DecodePoint, ...]) -> list[Document]:
    experts = commonest_experts(report.query.model)
    return [
        {
            "batch": p.batch,
            "attention_intensity": p.attention_intensity,
            "linear_intensity": p.linear_intensity,
            "step_intensity": p.step_intensity,
            "weight_bytes": p.weight_bytes,
            "activation_bytes": p.activation_bytes,
            "attention_bytes": p.attention_bytes,
            "experts_hit": None if experts is None else expected_experts(experts, p.batch),
        }
        for p in points
    ]
