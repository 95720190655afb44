"""Building blocks of the JSON documents of several commands. Scripts rely on the keys."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from calc.explain.terms import Number, Term

Document = dict[str, Any]


def json_number(value: Number) -> int | float:
    """An int if the value is whole, else a float (JSON has no fractions)."""
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    return value


def term_document(term: Term) -> Document:
    """A step: what, formula, substituted numbers, value, unit."""
    return {
        "name": term.name,
        "formula": term.formula,
        "substituted": term.substituted,
        "value": json_number(term.value),
        "unit": term.unit,
    }
