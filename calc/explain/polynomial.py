"""Closed forms of traced expressions: expand, cancel, and the limit as one symbol grows.

Just enough algebra for FLOPs over bytes (polynomials with integer powers), in a few dozen lines, because the panes
recompute on every keystroke. The tests check it against sympy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

from calc.explain.terms import Expr, Number, as_expr, evaluate, symbol

Monomial = tuple[tuple[str, int], ...]
"""Symbols with their powers, by name: N²d is (("head_dim", 1), ("n_keys", 2))."""


@dataclass(frozen=True, slots=True)
class Polynomial:
    """Coefficients by monomial; zeros are dropped."""

    terms: Mapping[Monomial, Fraction]

    def __add__(self, other: Polynomial) -> Polynomial:
        total = dict(self.terms)
        for key, coefficient in other.terms.items():
            total[key] = total.get(key, Fraction(0)) + coefficient
        return Polynomial({k: c for k, c in total.items() if c})

    def __mul__(self, other: Polynomial) -> Polynomial:
        total = Polynomial({})
        for a, x in self.terms.items():
            total = total + Polynomial({_times(a, b): x * y for b, y in other.terms.items()})
        return total

    def degree(self, name: str) -> int:
        """Highest power of the symbol `name`."""
        return max((dict(key).get(name, 0) for key in self.terms), default=0)

    def leading(self, name: str) -> Polynomial:
        """The coefficient, a polynomial in the others, of the highest power of `name`."""
        top = self.degree(name)
        kept = {k: c for k, c in self.terms.items() if dict(k).get(name, 0) == top}
        return Polynomial({tuple((s, p) for s, p in k if s != name): c for k, c in kept.items()})


def _times(a: Monomial, b: Monomial) -> Monomial:
    powers = dict(a)
    for name, power in b:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted(powers.items()))


def expand(node: Expr) -> Polynomial:
    """`node` multiplied out. Raises ValueError if it is not a polynomial (a division, a floor)."""
    if node.op == "num":
        return Polynomial({(): Fraction(node.args[0])} if node.args[0] else {})
    if node.op == "sym":
        return Polynomial({((node.args[0], 1),): Fraction(1)})
    if node.op == "**" and node.args[1].op == "num":
        base, total = expand(node.args[0]), Polynomial({(): Fraction(1)})
        for _ in range(node.args[1].args[0]):
            total = total * base
        return total
    left, right = (expand(arg) for arg in node.args)
    if node.op == "*":
        return left * right
    if node.op == "+":
        return left + right
    if node.op == "-":
        return left + right * Polynomial({(): Fraction(-1)})
    raise ValueError(f"{node.op} is not part of a polynomial")


ORDER = ("element_bytes", "batch", "group_size", "n_queries", "n_keys", "head_dim")


def _rank(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _monomial_expr(key: Monomial, coefficient: Fraction) -> Expr:
    out = as_expr(coefficient.numerator if coefficient.denominator == 1 else coefficient)
    for name, power in sorted(key, key=lambda item: _rank(item[0])):
        factor = symbol(name) if power == 1 else symbol(name) ** power
        out = factor if out == as_expr(1) else out * factor
    return out


def to_expr(polynomial: Polynomial) -> Expr:
    """The polynomial as an expression, highest power of N first."""
    keys = sorted(polynomial.terms, key=lambda k: (-dict(k).get("n_keys", 0), -dict(k).get("head_dim", 0)))
    total: Expr = as_expr(0)
    for i, key in enumerate(keys):
        coefficient = polynomial.terms[key]
        if i and coefficient < 0:
            total = total - _monomial_expr(key, -coefficient)
        else:
            term = _monomial_expr(key, coefficient)
            total = total + term if i else term
    return total


def closed_form(node: Expr) -> Expr:
    """`node` multiplied out and collected."""
    return to_expr(expand(node))


@dataclass(frozen=True, slots=True)
class Ratio:
    """A quotient of polynomials in lowest terms (common monomials and numbers cancelled)."""

    above: Polynomial
    below: Polynomial

    @property
    def expression(self) -> Expr:
        """The quotient as an expression."""
        return to_expr(self.above) / to_expr(self.below)

    def limit(self, name: str, values: Mapping[str, Number]) -> tuple[Expr, Fraction] | None:
        """Its limit as `name` grows, as formula and value; None if it grows without bound."""
        up, down = self.above.degree(name), self.below.degree(name)
        if up > down:
            return None
        if up < down:
            return as_expr(0), Fraction(0)
        reduced = ratio_of(self.above.leading(name), self.below.leading(name))
        return reduced.expression, Fraction(evaluate(reduced.expression, values))


def ratio_of(above: Polynomial, below: Polynomial) -> Ratio:
    """`above` / `below`, cancelled."""
    keys = [*above.terms, *below.terms]
    names = {name for key in keys for name, _ in key}
    common = {name: min(dict(key).get(name, 0) for key in keys) for name in names}
    numbers = [*above.terms.values(), *below.terms.values()]
    scale = Fraction(gcd(*(c.numerator for c in numbers)), lcm(*(c.denominator for c in numbers)))

    def cancel(polynomial: Polynomial) -> Polynomial:
        lowered = {
            tuple((s, p - common[s]) for s, p in key if p > common[s]): c / scale for key, c in polynomial.terms.items()
        }
        return Polynomial(lowered)

    return Ratio(cancel(above), cancel(below))


def ratio(above: Expr, below: Expr) -> Ratio:
    """The quotient of two expressions in lowest terms."""
    return ratio_of(expand(above), expand(below))
