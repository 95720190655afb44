"""An estimate as the JSON of ``estimate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from calc.commands.documents import Document
from calc.commands.estimate_words import assumptions
from calc.commands.frontier import Row, cost_per_million, judged
from calc.model.spec import DIMENSIONS
from calc.model.study import Study
from calc.speed.accuracy import accuracy_of
from calc.speed.crossings import cache_over_weights, compute_bound_batch, speculation_pays_to
from calc.speed.estimate import Estimate
from calc.speed.room import room_of
from calc.speed.steps import Steps

if TYPE_CHECKING:
    from calc.speed.passes import PassTime
    from calc.speed.spans import Span


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
        "dcp": answer.asked.dcp,
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
    """The source of the constants, and the errors of estimates of this kind (None: no such run is known)."""
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
    """Gain and cost of drafting; None without drafting."""
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
