"""How each measurement is presented: a module per measurement, named as in `engine.measure.kinds`."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from engine.measure.measurement import Measurement
from engine.measure.registry import MEASUREMENTS
from tui.live.presentation import Presentation, plain_presentation


def _presentation(measurement: Measurement) -> Presentation:
    module = f"{__name__}.{measurement.module}"
    if find_spec(module) is None:
        return plain_presentation(measurement)
    found: dict[str, Presentation] = {p.name: p for p in import_module(module).PRESENTATIONS}
    return found[measurement.name]


PRESENTATIONS = {name: _presentation(measurement) for name, measurement in MEASUREMENTS.items()}
"""The presentation of each measurement by name, in the order in which they are offered."""
