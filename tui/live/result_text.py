"""Figures of measurements as text: spreads, ratios, medians, the machine. Pure."""

from __future__ import annotations

from calc.units import Quantity, format_duration_s
from engine.records import Machine
from engine.text import plural


def spread_text(low: float, high: float) -> str:
    """``20.1–20.3 ms``; both units if they differ."""
    first, last = format_duration_s(low), format_duration_s(high)
    number, *unit = first.split(" ")
    return f"{number}–{last}" if len(unit) == 1 and unit == last.split(" ")[1:] else f"{first}–{last}"


def times(ratio: float) -> Quantity:
    """A ratio as text: ``2.00x``."""
    return Quantity(f"{ratio:.2f}x", ratio)


SHORT_NAMES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def medians(repeats: int, what: str = "repeats") -> str:
    """The kind of a result's figures: ``medians of 5 repeats``."""
    return f"medians of {repeats} {what}" if repeats > 1 else "one run each"


def machine_text(machine: Machine) -> str:
    """The machine of the measurement, in one line."""
    shared = f"{plural(machine.cores, 'core')}, {plural(machine.threads, 'thread')}"
    return (
        f"{machine.cpu}, {shared} · {machine.device} {machine.dtype} · "
        f"torch {machine.torch}, Python {machine.python}, {machine.system}"
    )
