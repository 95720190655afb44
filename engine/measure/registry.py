"""All measurements, found by the folder they lie in: every module of `engine.measure.kinds` declares some."""

from importlib import import_module
from pkgutil import iter_modules

from engine.measure import kinds
from engine.measure.measurement import Measurement
from engine.records import Request


def _found() -> dict[str, Measurement]:
    modules = (import_module(f"{kinds.__name__}.{module.name}") for module in iter_modules(kinds.__path__))
    measurements: list[Measurement] = [measurement for module in modules for measurement in module.MEASUREMENTS]
    return {measurement.name: measurement for measurement in sorted(measurements, key=lambda each: each.order)}


MEASUREMENTS = _found()
"""Every measurement by its name, in the order in which they are offered."""


def measurement_of(request: Request) -> Measurement | None:
    """The measurement that a request asks for; None for a request that asks for none."""
    return next((measurement for measurement in MEASUREMENTS.values() if measurement.made_by(request)), None)
