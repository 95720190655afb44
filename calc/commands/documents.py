"""The JSON documents of the command line (schema 1), built from reports. Keys are a contract with scripts."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

from calc.explain.terms import Number, Term, to_text
from calc.model.spec import DIMENSIONS

if TYPE_CHECKING:
    from calc.fit.memory import MemoryReport, TpRow
    from calc.intensity.attention import PhaseCost
    from calc.intensity.study import IntensityReport
    from calc.intensity.traffic import DecodePoint

Document = dict[str, Any]


def json_number(value: Number) -> int | float:
    """An int where the value is whole, else a float (JSON has no fractions)."""
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    return value


def term_document(term: Term) -> Document:
    """A step: what, formula, numbers put in, value, unit."""
    return {
        "name": term.name,
        "formula": term.formula,
        "substituted": term.substituted,
        "value": json_number(term.value),
        "unit": term.unit,
    }


def _tp_document(row: TpRow) -> Document:
    return {
        "tp": row.tp,
        "weight_bytes_per_gpu": row.weight_bytes_per_gpu,
        "kv_bytes_per_request_per_gpu": json_number(row.kv_bytes_per_request_per_gpu),
        "max_batch": row.max_batch,
        "fits": row.fits,
        "problem": row.problem,
    }


def memory_document(report: MemoryReport) -> Document:
    """What ``memory --json`` prints."""
    from calc.commands.notes import memory_notes

    model = report.study.model
    return {
        "command": "memory",
        "schema": 1,
        "model": {
            "name": model.name,
            **{name: getattr(model, name) for name in DIMENSIONS},
            "source": model.source,
        },
        "parameters": {
            "total": report.parameters.total,
            "active_per_token": report.parameters.active,
            "components": report.parameters.components,
        },
        "context": report.study.context,
        "weight_bytes": report.weight_bytes,
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
        "steps": [term_document(term) for term in report.steps],
        "notes": list(memory_notes(report)),
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


def intensity_document(report: IntensityReport) -> Document:
    """What ``intensity --json`` prints. Phases are of one KV head; `limit` is null where there is none.

    `bytes` is whole (a part of a byte takes all of it); `intensity` is worked out before that.
    """
    from calc.intensity.observations import intensity_observations

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
        "model": query.model.name,
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
