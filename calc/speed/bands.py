"""The width of bands: the errors on public runs of the same kind (bench/estimates.py)."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import assets
from calc.speed.spans import Band, widened

if TYPE_CHECKING:
    from calc.speed.asked import Asked
    from calc.speed.steps import Steps

STUDIED = {"ttft idle": Band(0.85, 1.9)}
"""From a study of the same public data, for kinds with too few pairs of model and device."""


def kind_of(asked: Asked, what: str) -> str:
    """The kind of a value: ``ttft`` on an idle or a loaded server, or the time per token of the load."""
    if asked.engine == "llamacpp":
        return f"llama.cpp {what}"
    if what == "tpot":
        return str(asked.load)
    idle = asked.load == "static" or (asked.load == "closed" and asked.count == 1)
    return f"ttft {'idle' if idle else 'loaded'}"


def class_of(device_name: str, *, experts: bool) -> str:
    """Which runs are comparable: all AMD runs, where software dominates the error; else runs of a class of models."""
    return "AMD" if device_name.startswith("AMD") else "experts" if experts else "dense"


def band_for(steps: Steps, what: str, *, experts: bool) -> Band:
    """The band of a time; wider if no operator of the device, or nothing of the engine, was measured."""
    kind, name = kind_of(steps.asked, what), class_of(steps.device.spec.name, experts=experts)
    known = known_bands()
    if (own := known.get(f"{kind}, {name}")) is not None and name == "AMD":
        return own
    band = own or known.get(kind) or STUDIED[kind]  # the band of all classes if this class has too few pairs
    measured = steps.device.constants.known and steps.asked.engine != "transformers"
    return band if measured else widened(band)


def known_bands() -> dict[str, Band]:
    """The bands by kind, and by kind and class."""
    return {name: Band(low, high) for name, (low, high) in accuracy_document()["bands"].items()}


@cache
def accuracy_document() -> dict[str, Any]:
    """The results of bench/estimates.py."""
    document: dict[str, Any] = json.loads(assets.path("estimate_accuracy.json").read_text(encoding="utf-8"))
    return document
