"""``memory --pp N --ep N --dp-attention N --dcp N``: what each pipeline stage holds, for each TP of the table."""

from __future__ import annotations

import argparse

from calc.commands.documents import Document, json_number, term_document
from calc.commands.tables import Table
from calc.fit.degrees import ParallelSpec
from calc.fit.parallel import ParallelPlan, plan
from calc.fit.stages import UNLIMITED, Stage
from calc.model.study import Study
from calc.units import format_bytes, format_count, format_decimal


def plans_from(args: argparse.Namespace, study: Study) -> tuple[ParallelPlan, ...]:
    """A plan for each TP of `study`."""
    sizes = None if args.pp_layers is None else tuple(args.pp_layers)
    shared = {name: getattr(args, name) or 1 for name in ("ep", "dp_attention", "dcp")}
    shared["pp"] = args.pp or len(sizes or (1,))
    return tuple(plan(study, ParallelSpec(tp=tp, pp_layers=sizes, **shared)) for tp in study.tps)


def parallel_document(plans: tuple[ParallelPlan, ...]) -> Document:
    """The value of "parallel" in ``memory --json``."""
    spec = plans[0].spec
    return {
        "pp": spec.pp,
        "ep": spec.ep,
        "dp_attention": spec.dp_attention,
        "dcp": spec.dcp,
        "plans": [_plan_document(found) for found in plans],
    }


def _plan_document(found: ParallelPlan) -> Document:
    return {
        "tp": found.spec.tp,
        "devices": found.devices,
        "problem": found.problem,
        "fits": found.fits,
        "max_batch": found.max_batch,
        "missing_bytes": found.missing_bytes,
        "binding_stage": found.binding + 1 if found.stages else None,
        "stages": [_stage_document(stage) for stage in found.stages],
        "steps": [term_document(term) for term in found.steps],
        "notes": list(found.notes),
    }


def _stage_document(stage: Stage) -> Document:
    return {
        "stage": stage.index + 1,
        "first_layer": stage.first_layer,
        "n_layers": stage.n_layers,
        "embedding": stage.embedding,
        "head": stage.head,
        "weight_bytes_per_gpu": stage.weight_bytes,
        "kv_bytes_per_request_per_gpu": json_number(stage.kv_bytes_per_request),
        "state_bytes_per_sequence_per_gpu": stage.state_bytes,
        "max_batch": None if stage.max_batch == UNLIMITED else stage.max_batch,
        "missing_bytes": stage.missing_bytes,
    }


def parallel_tables(plans: tuple[ParallelPlan, ...]) -> list[Table]:
    """One row per stage and TP; the limiting stage is marked."""
    rows: list[tuple[str, ...]] = []
    struck = set()
    for found in plans:
        if found.problem is not None:
            struck.add(len(rows))
            rows.append((str(found.spec.tp), str(found.devices), "–", "–", "–", "–", "–", found.problem))
        rows += [_stage_cells(found, stage) for stage in found.stages]
    columns = ("TP", "GPUs", "Stage", "Layers", "Weights per GPU", "KV/request per GPU", "Batch", "Remark")
    numeric = frozenset(range(7))
    return [
        Table(title=_title(plans[0].spec), columns=columns, rows=tuple(rows), numeric=numeric, struck=frozenset(struck))
    ]


def _title(spec: ParallelSpec) -> str:
    named = (("pipeline", spec.pp), ("experts", spec.ep), ("attention groups", spec.dp_attention), ("tokens", spec.dcp))
    return "Parallelism: " + ", ".join(f"{name} {n:,}" for name, n in named if n > 1 or name == "pipeline")


def _stage_cells(found: ParallelPlan, stage: Stage) -> tuple[str, ...]:
    groups = found.spec.dp_attention
    batch = "any" if stage.max_batch == UNLIMITED else format_count(stage.max_batch * groups)
    return (
        str(found.spec.tp),
        str(found.devices),
        str(stage.index + 1),
        str(stage.n_layers),
        format_decimal(stage.weight_bytes),
        format_decimal(stage.kv_bytes_per_request),
        batch if stage.fits else "–",
        _remark(found, stage),
    )


def _remark(found: ParallelPlan, stage: Stage) -> str:
    ends = [name for name, has in (("embedding", stage.embedding), ("head", stage.head)) if has]
    parts = ["with the " + " and the ".join(ends)] if ends and len(found.stages) > 1 else []
    if stage.missing_bytes:
        parts.append(f"short by {format_bytes(stage.missing_bytes)}")
    if stage.index == found.binding and len(found.stages) > 1:
        parts.append("limits the batch")
    return ", ".join(parts)


def parallel_notes(plans: tuple[ParallelPlan, ...]) -> list[str]:
    """The notes of all plans, without repetition."""
    return list(dict.fromkeys(note for found in plans for note in found.notes))
