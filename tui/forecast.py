"""What a model will take of this machine's memory, said before it is loaded."""

from __future__ import annotations

import os

from calc.params import parameters
from calc.specs import ModelSpec
from calc.units import format_decimal
from engine.events import Generate, ModelInfo
from engine.hub import cached_model
from tui.predict import ELEMENT_BYTES, read_spec

AUTO = 4.0
"""The most that auto takes: a CPU that is slow at 16 bits runs such weights as float32."""


def forecast(request: Generate, loaded: ModelInfo | None) -> str:
    """A sentence on weights and cache against the memory that is free; empty where nothing is to be loaded."""
    if request.model is None or (loaded is not None and loaded.path == request.model):
        return ""
    cached = None if os.path.exists(request.model) else cached_model(request.model)
    spec = read_spec(request.model if cached is None else str(cached))
    if spec is None:
        return ""
    weights = weight_bytes(spec, request.dtype)
    free = available_bytes()
    sure = request.dtype != "auto"
    text = f"loading {spec.name}: {'about' if sure else 'at most'} {format_decimal(weights)} of weights"
    if request.tp > 1:
        text += f" on {request.tp} ranks"
    if free is None:
        return text
    text += f", {format_decimal(free)} of memory free"
    if weights <= free:
        return text
    return f"{text}: it {'will' if sure else 'may'} not fit"


def weight_bytes(spec: ModelSpec, dtype: str) -> float:
    """Bytes of the weights as the engine would hold them."""
    return parameters(spec).total * ELEMENT_BYTES.get(dtype, AUTO)


def available_bytes() -> int | None:
    """Memory that a new process can have without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None
