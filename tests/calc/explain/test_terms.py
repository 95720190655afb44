"""calc.explain.terms: one function on ints, arrays and symbols; and what is shown has the value it claims."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from calc.explain.terms import (
    SYMBOLS,
    Expr,
    as_expr,
    derive,
    evaluate,
    maximum,
    minimum,
    number_text,
    substituted,
    symbol,
    to_latex,
    to_text,
)
from calc.fit import memory
from calc.intensity import traffic
from calc.model import cache as kv_cache
from calc.model import count, parts, shares
from calc.model.parts import Mlp, Norm
from tests.calc.strategies import QUICK, read_text

FORMULAS = [
    count.embedding_params,
    count.position_params,
    parts.attention_params,
    parts.feed_forward_params,
    parts.layer_norm_params,
    count.final_norm_params,
    count.head_params,
    count.total_params,
    kv_cache.kv_bytes_per_token,
    kv_cache.kv_bytes_per_request,
    kv_cache.kv_bytes_per_windowed_request,
    parts.kv_heads_per_rank,
    memory.weight_bytes,
    memory.max_batch,
    memory.shortfall,
    memory.equal_share,
    memory.equal_kv_share,
    shares.rank_weight_bytes,
    kv_cache.rank_kv_bytes,
    traffic.linear_flops,
]
SHAPES = [{}, {"qkv_bias": True, "o_bias": True}, {"mlp": Mlp.PLAIN, "bias": True}]
SHAPES += [{"norm": Norm.LAYER, "qk_norm": True}, {"norm": Norm.LAYER}, {"tied": True, "bias": True}]


def variants():
    """Every formula with every choice of form that it takes."""
    for formula in FORMULAS:
        known = inspect.signature(formula).parameters
        forms = [shape for shape in SHAPES if shape.keys() <= known.keys()]
        for shape in forms:
            yield pytest.param(formula, shape, id="-".join([formula.__name__, *shape]))


def number_names(formula):
    return [n for n, p in inspect.signature(formula).parameters.items() if p.annotation in ("Any", inspect._empty)]


def sympy_symbol(name):
    return sympy.Symbol(name, positive=True, integer=True)


def to_sympy(node):
    """The tree as a sympy expression of positive integers: an independent reading of its operators."""
    if node.op == "sym":
        return sympy_symbol(node.args[0])
    if node.op == "num":
        return sympy.Rational(Fraction(node.args[0]).numerator, Fraction(node.args[0]).denominator)
    a, b = (to_sympy(arg) for arg in node.args)
    return {
        "+": lambda: a + b,
        "-": lambda: a - b,
        "*": lambda: a * b,
        "/": lambda: a / b,
        "//": lambda: sympy.floor(a / b),
        "**": lambda: a**b,
        "min": lambda: sympy.Min(a, b),
        "max": lambda: sympy.Max(a, b),
    }[node.op]()


@pytest.mark.parametrize(("formula", "shape"), variants())
@QUICK
@given(data=st.data())
def test_one_formula_on_ints_arrays_and_symbols(formula, shape, data):
    names = number_names(formula)
    assert names, "a formula without arguments proves nothing"
    rows = data.draw(st.lists(st.fixed_dictionaries({n: st.integers(1, 999) for n in names}), min_size=2, max_size=4))
    direct = [formula(**row, **shape) for row in rows]
    arrays = formula(**{n: np.array([row[n] for row in rows], dtype=object) for n in names}, **shape)
    traced = as_expr(formula(**{n: symbol(n) for n in names}, **shape))
    assert list(np.broadcast_to(arrays, (len(rows),))) == direct
    for row, value in zip(rows, direct, strict=True):
        exact = evaluate(traced, row)
        assert float(exact) == pytest.approx(float(value), rel=1e-12)
        if isinstance(value, int):
            assert exact == value
        assert read_text(substituted(traced, row)) == exact


@pytest.mark.parametrize(("formula", "shape"), variants())
def test_sympy_reads_the_same_formula(formula, shape):
    names = number_names(formula)
    row = {n: 1000 + 37 * i for i, n in enumerate(names)}
    row |= {n: v for n, v in {"tp": 4, "window": 300, "n_kv_heads": 8}.items() if n in row}
    traced = as_expr(formula(**{n: symbol(n) for n in names}, **shape))
    value = to_sympy(traced).subs({sympy_symbol(n): v for n, v in row.items()})
    assert Fraction(int(value.p), int(value.q)) == evaluate(traced, row)


@pytest.mark.parametrize(("formula", "shape"), variants())
def test_machine_integers_give_the_same(formula, shape):
    names = number_names(formula)
    rows = [{n: 7 + 3 * i + k for i, n in enumerate(names)} for k in range(5)]
    arrays = formula(**{n: np.array([row[n] for row in rows], dtype=np.int64) for n in names}, **shape)
    assert list(np.broadcast_to(arrays, (5,))) == [formula(**row, **shape) for row in rows]


# Random expressions

leaves = st.one_of(
    st.sampled_from(["n_keys", "head_dim", "batch"]).map(symbol),
    st.integers(1, 5000).map(as_expr),
    st.fractions(Fraction(1, 64), 64, max_denominator=64).map(as_expr),
)


def combine(children):
    pair = st.tuples(children, children)
    binary = st.tuples(st.sampled_from(["+", "-", "*", "/", "//", "min", "max"]), pair).map(lambda t: Expr(t[0], t[1]))
    power = st.tuples(children, st.integers(2, 3)).map(lambda t: Expr("**", (t[0], as_expr(t[1]))))
    return binary | power


expressions = st.recursive(leaves, combine, max_leaves=8)
numbers = st.one_of(st.integers(1, 10**7), st.fractions(Fraction(1, 256), 10**6, max_denominator=256))
assignments = st.fixed_dictionaries(dict.fromkeys(("n_keys", "head_dim", "batch"), numbers))


def value_or_none(node, values):
    try:
        return evaluate(node, values)
    except ZeroDivisionError:
        return None


@QUICK
@given(expressions, assignments)
def test_any_shown_text_has_the_value(node, values):
    value = value_or_none(node, values)
    if value is not None:
        assert read_text(substituted(node, values)) == value


@QUICK
@given(expressions, assignments)
def test_any_formula_text_names_its_symbols_only(node, values):
    """The formula as shown, with numbers written over its letters, is the formula with numbers put in."""
    shown = to_text(node, lambda at: f"<{at.args[0]}>" if at.op == "sym" else number_text(at.args[0]))
    plain = {n: v for n, v in values.items() if isinstance(v, int)}
    for name in ("n_keys", "head_dim", "batch"):
        shown = shown.replace(f"<{name}>", number_text(plain.get(name, 3)))
    assert shown == substituted(node, {n: plain.get(n, 3) for n in values})


@QUICK
@given(expressions)
def test_latex_is_balanced(node):
    latex = to_latex(node)
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left") == latex.count(r"\right")


@QUICK
@given(expressions, st.fixed_dictionaries({n: st.integers(1, 50) for n in ("n_keys", "head_dim", "batch")}))
def test_latex_has_the_value(node, values):
    """The LaTeX with numbers put in, rewritten to text by rules of its own, reads as the same number."""
    value = value_or_none(node, values)
    if value is not None:
        assert read_text(latex_as_text(substituted(node, values, latex=True))) == value


def latex_as_text(latex):
    """LaTeX maths of the few commands that are used, as the text grammar."""
    text = latex.replace("{,}", ",").replace(r"\left\lfloor", "⌊").replace(r"\right\rfloor", "⌋")
    text = text.replace(r"\left(", "(").replace(r"\right)", ")").replace(r"\cdot", "·").replace(r"\min", "min")
    text = text.replace(r"\max", "max")
    while r"\frac" in text:
        at = text.rindex(r"\frac")
        above, rest = braced(text[at + 5 :])
        below, rest = braced(rest)
        text = f"{text[:at]}(({above}) / ({below})){rest}"
    for digit in "23":
        text = text.replace(f"^{{{digit}}}", "⁰¹²³"[int(digit)])
    assert "\\" not in text
    return text.replace(" - ", " − ")


def braced(text):
    depth = 0
    for i, sign in enumerate(text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return text[1:i], text[i + 1 :]
    raise AssertionError(text)


# Numbers as written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (8_030_261_248, "8,030,261,248"),
        (2.0, "2"),
        (1.5, "1.5"),
        (Fraction(17, 32), "0.53125"),
        (Fraction(73729, 2), "36,864.5"),
        (Fraction(16_060_522_496, 3), "16,060,522,496/3"),
        (Fraction(4, 2), "2"),
        (Fraction(1, 4096), "0.000244140625"),
    ],
)
def test_number_text(value, text):
    assert number_text(value) == text


@given(st.fractions(0, 10**15, max_denominator=10**6))
def test_number_text_of_a_fraction_is_exact_or_the_beginning_of_its_digits(value):
    text = number_text(value).replace(",", "")
    if text.endswith("…"):
        assert 0 <= value - Fraction(text[:-1]) < Fraction(2, 10**6) or value > 10**9
    else:
        assert Fraction(text) == value


def test_division_by_a_fraction_is_bracketed():
    node = symbol("memory_bytes") // symbol("kv_request_bytes")
    assert substituted(node, {"memory_bytes": 10, "kv_request_bytes": Fraction(1, 3)}) == "⌊10 / (1/3)⌋"


def test_power_of_a_power_is_bracketed():
    assert to_text((symbol("n_keys") ** 2) ** 3) == "(N²)³"


def test_differences_keep_their_brackets():
    n, d = symbol("n_keys"), symbol("head_dim")
    assert to_text(n - (d - 1)) == "N − (d − 1)"
    assert to_text((n - d) - 1) == "N − d − 1"
    assert to_text(n / (d * 2)) == "N / (d · 2)"
    assert to_latex(n / (d + 1)) == r"\frac{N}{d + 1}"
    assert to_latex((n + d) * 2) == r"\left(N + d\right) \cdot 2"


def test_neutral_numbers_leave_no_trace():
    n = symbol("n_keys")
    assert n * 1 is n
    assert 1 * n is n
    assert n + 0 is n
    assert 0 + n is n
    assert n - 0 is n
    assert n / 1 is n
    assert n * 0 == 0
    assert 0 * n == 0


def test_reversed_operators():
    n = symbol("n_keys")
    assert to_text(10 - n) == "10 − N"
    assert to_text(10 / n) == "10 / N"
    assert to_text(2 * n + 1) == "2 · N + 1"


def test_minimum_and_maximum():
    n = symbol("n_keys")
    assert (minimum(3, 5), maximum(3, 5)) == (3, 5)
    assert to_text(minimum(n, 5)) == "min(N, 5)"
    assert to_text(minimum(5, n)) == "min(N, 5)"
    assert to_text(maximum(5, n)) == "max(N, 5)"
    assert to_text(n.clip(min=1, max=5)) == "max(min(N, 5), 1)"
    assert list(minimum(np.array([1, 9]), 5)) == [1, 5]
    assert list(maximum(5, np.array([1, 9]))) == [5, 9]


def test_every_symbol_is_distinct():
    """Two arguments may share a letter only where no formula has both: b is bytes per cache element or per element."""
    shared = {}
    for name, sign in SYMBOLS.items():
        shared.setdefault(sign.text, []).append(name)
    assert [names for names in shared.values() if len(names) > 1] == [["kv_element_bytes", "element_bytes"]]
    for formula in FORMULAS:
        letters = [SYMBOLS[name].text for name in number_names(formula) if name in SYMBOLS]
        assert len(letters) == len(set(letters)), formula.__name__


# derive


def test_derive_keeps_divisions_exact():
    term = derive("share", memory.equal_share, unit="B", weight_bytes=10, tp=3)
    assert term.value == Fraction(10, 3)
    assert (term.formula, term.substituted, term.unit) == ("W / X", "10 / 3", "B")
    assert type(derive("share", memory.equal_share, unit="B", weight_bytes=9, tp=3).value) is int


def test_derive_passes_choices_through():
    term = derive(
        "mlp", parts.feed_forward_params, unit="p", hidden_size=4, intermediate_size=8, mlp=Mlp.PLAIN, bias=True
    )
    assert term.value == 2 * 4 * 8 + 8 + 4
    assert term.values == {"hidden_size": 4, "intermediate_size": 8}
    assert term.latex == r"2 \cdot h_1 \cdot h_2 + h_2 + h_1"
    assert term.latex_substituted == r"2 \cdot 4 \cdot 8 + 8 + 4"


def test_derive_of_a_constant():
    term = derive("none", lambda *, batch, tied: 0 if tied else batch, unit="x", batch=3, tied=True)
    assert (term.value, term.formula, term.substituted) == (0, "0", "0")
