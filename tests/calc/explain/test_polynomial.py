"""calc.explain.polynomial against sympy: expansion, quotients in lowest terms, limits."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import assume, given
from hypothesis import strategies as st

from calc.explain.polynomial import closed_form, expand, ratio, to_expr
from calc.explain.terms import Expr, as_expr, evaluate, symbol, to_text
from calc.intensity.attention import Attention, Phase, attention_work
from tests.calc.strategies import QUICK

NAMES = ("n_keys", "head_dim", "element_bytes")
N, D, B = (sympy.Symbol(name, positive=True) for name in NAMES)
SIGNS = {name: sympy.Symbol(name, positive=True) for name in (*NAMES, "group_size")}


def to_sympy(node):
    if node.op == "sym":
        return SIGNS[node.args[0]]
    if node.op == "num":
        return sympy.Rational(Fraction(node.args[0]).numerator, Fraction(node.args[0]).denominator)
    a, b = (to_sympy(arg) for arg in node.args)
    return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b, "**": lambda: a**b}[
        node.op
    ]()


leaves = st.one_of(
    st.sampled_from(NAMES).map(symbol),
    st.integers(0, 9).map(as_expr),
    st.fractions(Fraction(1, 8), 4, max_denominator=8).map(as_expr),
)


def combine(children):
    binary = st.tuples(st.sampled_from("+-*"), st.tuples(children, children)).map(lambda t: Expr(t[0], t[1]))
    return binary | st.tuples(children, st.integers(0, 3)).map(lambda t: Expr("**", (t[0], as_expr(t[1]))))


polynomials = st.recursive(leaves, combine, max_leaves=6)
values = st.fixed_dictionaries({name: st.integers(1, 100) for name in NAMES})


@QUICK
@given(polynomials)
def test_expand_is_sympys(node):
    wanted = sympy.Poly(sympy.expand(to_sympy(node)), N, D, B)
    found = {
        tuple(dict(key).get(name, 0) for name in NAMES): coefficient for key, coefficient in expand(node).terms.items()
    }
    assert found == {powers: Fraction(int(c.p), int(c.q)) for powers, c in wanted.terms() if c}


@QUICK
@given(polynomials, values)
def test_closed_form_has_the_value(node, at):
    assert evaluate(closed_form(node), at) == evaluate(node, at)


@QUICK
@given(polynomials, polynomials, values)
def test_a_ratio_keeps_its_value(above, below, at):
    assume(expand(below).terms)
    assume(evaluate(below, at))
    assert evaluate(ratio(above, below).expression, at) == Fraction(evaluate(above, at)) / evaluate(below, at)


@QUICK
@given(polynomials, polynomials)
def test_limits_are_sympys(above, below):
    """With the other symbols at numbers: the leading coefficients could cancel only by accident of those."""
    at = {"head_dim": 7, "element_bytes": 3}
    quotient = ratio(above, below) if expand(below).terms else None
    assume(quotient is not None)
    fixed = {D: 7, B: 3}
    numerator, denominator = to_sympy(above).subs(fixed), to_sympy(below).subs(fixed)
    assume(sympy.expand(denominator))
    degrees = [expand(node).degree("n_keys") for node in (above, below)]
    assume([sympy.degree(sympy.expand(e), N) if sympy.expand(e) else 0 for e in (numerator, denominator)] == degrees)
    found = quotient.limit("n_keys", at)
    wanted = sympy.limit(sympy.cancel(numerator / denominator), N, sympy.oo)
    if found is None:
        assert wanted in (sympy.oo, -sympy.oo)
    else:
        assert found[1] == Fraction(int(wanted.p), int(wanted.q)) == evaluate(found[0], at)


@QUICK
@given(polynomials, polynomials)
def test_a_ratio_is_in_lowest_terms(above, below):
    """No number and no symbol divides every term of both any more."""
    assume(expand(above).terms)
    assume(expand(below).terms)
    quotient = ratio(above, below)
    coefficients = [*quotient.above.terms.values(), *quotient.below.terms.values()]
    assert all(c.denominator == 1 for c in coefficients)
    assert sympy.gcd_list([int(c) for c in coefficients]) == 1
    keys = [dict(key) for key in (*quotient.above.terms, *quotient.below.terms)]
    assert all(min(key.get(name, 0) for key in keys) == 0 for name in NAMES)


@pytest.mark.parametrize("op", ["/", "//", "min", "max"])
def test_what_is_no_polynomial_is_refused(op):
    with pytest.raises(ValueError, match="not part of a polynomial"):
        expand(Expr(op, (symbol("n_keys"), symbol("head_dim"))))


def test_zero_is_written():
    n = symbol("n_keys")
    assert to_text(closed_form(n - n)) == "0"
    assert to_expr(expand(as_expr(0))) == as_expr(0)


def test_powers_of_n_come_first():
    n, d = symbol("n_keys"), symbol("head_dim")
    assert to_text(closed_form(5 * n + d * n * n + d + 3 * n * n)) == "N² · d + 3 · N² + 5 · N + d"


@pytest.mark.parametrize("kind", Attention)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("softmax_flops", [0, 5])
def test_the_formulas_that_are_shown_against_sympy(kind, phase, grouped, softmax_flops):
    """The very expressions of the intensity pane: expansion, quotient and limit in N."""
    group = symbol("group_size") if grouped else 1
    sizes = {"n_keys": symbol("n_keys"), "head_dim": symbol("head_dim"), "group_size": group}
    flops, moved = attention_work(
        kind, phase, softmax_flops=softmax_flops, element_bytes=symbol("element_bytes"), **sizes
    )

    quotient = ratio(flops, moved)
    assert sympy.expand(to_sympy(closed_form(flops)) - to_sympy(flops)) == 0
    assert sympy.expand(to_sympy(closed_form(moved)) - to_sympy(moved)) == 0
    assert sympy.cancel(to_sympy(quotient.expression) - to_sympy(flops) / to_sympy(moved)) == 0
    limit = quotient.limit("n_keys", {"head_dim": 128, "element_bytes": 2, "group_size": 4})
    wanted = sympy.limit(to_sympy(flops) / to_sympy(moved), N, sympy.oo)
    assert (wanted == sympy.oo) if limit is None else sympy.simplify(to_sympy(limit[0]) - wanted) == 0
