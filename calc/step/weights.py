"""Bytes per weight when read: as the checkpoint stores that part of the model, or one format for all."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

from calc.explain.terms import Number
from calc.model.components import component_of
from calc.model.count import parameters
from calc.model.tensors import Tensor
from calc.units import whole

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec

WeightBytes = Callable[[Tensor], Number]


@cache
def one_format(element_bytes: Number) -> WeightBytes:
    """Every weight takes `element_bytes`."""
    return lambda tensor: element_bytes


@cache
def as_stored(model: ModelSpec) -> WeightBytes:
    """Each part of `model` takes the bytes it has in its checkpoint, scales included."""
    stored = model.stored
    if stored is None:
        return one_format(2)
    counts = parameters(model)
    average = Fraction(stored.total_bytes, counts.total)
    held = {name: n_bytes for name, n_bytes in stored.components if n_bytes}
    each = {name: Fraction(n, counts.components[name]) for name, n in held.items() if counts.components[name]}
    by_part = {name: whole(each.get(name, average)) for name in counts.components}
    if not held.get("head"):
        by_part["head"] = by_part["embedding"]
    return lambda tensor: by_part[component_of(tensor)]
