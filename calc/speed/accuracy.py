"""The errors of estimates on public runs of the same kind, from bench/estimates.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from calc.speed.asked import Asked, Load
from calc.speed.bands import accuracy_document
from calc.speed.steps import has_experts

if TYPE_CHECKING:
    from calc.model.study import Study

METRICS = {
    Load.STATIC: ("static", "latency_s"),
    Load.CLOSED: ("closed_loop", "tpot_ms"),
    Load.MAX: ("max_load", "output_tokens_per_s_per_gpu"),
}
VENDORS = ("NVIDIA", "AMD", "Apple")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Public runs of this kind: number of values, pairs of model and device, median error of the middle estimate.

    `band_covers`: the share of values inside a band derived from the other pairs.
    """

    rows: int
    pairs: int
    median_error: float
    band_covers: float


def accuracy_of(study: Study, asked: Asked) -> Accuracy | None:
    """The accuracy for this load, vendor and class of model; None if no such run was compared."""
    vendor = next((name for name in VENDORS if study.device.name.startswith(name)), "")
    if asked.engine == "llamacpp":
        key = f"llama.cpp, batch 1 · decode_tokens_per_s · {vendor}"
    else:
        kind, metric = METRICS[asked.load]
        key = f"{kind} · {metric} · {vendor}, {'experts' if has_experts(study.model) else 'dense'}"
    found = accuracy_document()["groups"].get(key)
    return None if found is None else Accuracy(**found)
